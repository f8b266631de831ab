"""Runs what was recorded again and compares: with everything resident bit by bit, and with transformers by
tolerance."""
