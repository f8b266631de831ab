"""Computes what a model needs and whether it fits, without starting anything."""
