"""Android's NNAPI, as onnxruntime's execution provider uses it: what it takes of a QDQ model, and its arithmetic."""
