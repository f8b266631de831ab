"""Kernels: products of a few rows with big weights, the project's own (`native`) beside those of torch."""
