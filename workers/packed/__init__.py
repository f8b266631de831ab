"""Packed experts: the description of how bytes in a slot become the values of a matrix."""
