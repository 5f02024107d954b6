"""Quantization mathematics: arrays in, arrays out. Knows no graph, no runtime and no torch."""
