"""Loading, saving, editing and preparing ONNX graphs."""
