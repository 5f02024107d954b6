"""What the float model shows on samples: statistics for a plan, here or elsewhere, at once or layer by layer."""
