"""Rounds, aggregation and transports (torch). Start reading at rounds.py."""
