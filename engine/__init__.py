"""Consilium's engine: hospital folders -> federated training -> run folder -> published model -> opinions."""

import os

# ONNX Runtime 1.31 writes a device id and a queue of events under the home folder, and asks the network where its
# maker's collector is. Nothing of a hospital's machine is to leave it; the variable works only before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "1.0.0"
