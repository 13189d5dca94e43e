"""A finished run -> ONNX models that the dashboard serves (torch; above training and results)."""
