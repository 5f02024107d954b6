"""Benchmarks: edgeq beside float and beside its peers, in one run on the same data."""
