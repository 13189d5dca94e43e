"""What the dashboard's pages share. Never imports torch, directly or through the engine."""
