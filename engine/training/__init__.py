"""Networks, objectives and the one local training loop (torch)."""
