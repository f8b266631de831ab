"""Quantises the experts of a checkpoint: what is written, and how values become codes."""
