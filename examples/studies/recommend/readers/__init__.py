"""Readers of MovieLens and Amazon reviews in their published formats."""
