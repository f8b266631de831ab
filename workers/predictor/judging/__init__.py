"""Measures predictions on traces."""
