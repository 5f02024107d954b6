"""Accumulators of activation statistics, and calibrators that choose a range from them, one a file."""
