"""Readers and writers of other containers."""
