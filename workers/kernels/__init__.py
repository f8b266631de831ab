"""Kernels: the ways to multiply rows by weights on a CPU, torch's and the project's own, and which one runs where."""
