"""Published model + image -> opinions (ONNX Runtime, no torch)."""
