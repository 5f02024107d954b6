"""Reports that people and machines read."""
