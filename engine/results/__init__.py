"""Run folders, metrics and the registry of published versions. No torch, imports nothing above it."""
