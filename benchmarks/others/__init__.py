"""Other people's models through edgeq: `python -m benchmarks.others` (docs/others.md)."""
