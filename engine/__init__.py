"""Consilium's engine: hospital folders -> federated training -> run folder -> published model -> opinions."""

__version__ = "0.1.0"
