"""Sensitivity, bit allocation and tuning."""
