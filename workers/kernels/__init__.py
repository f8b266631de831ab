"""Kernels: the ways to multiply rows by weights on a CPU, which is fastest for a shape, and how that is measured."""
