"""Packages for platforms, one a file."""
