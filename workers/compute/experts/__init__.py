"""Routed experts over slots: residency, kernels, hints."""
