"""Weight algorithms, one a file: `quantize(w, spec, stats) -> QTensor`."""
