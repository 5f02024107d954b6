"""Training-time methods. Needs the extra `torch`."""
