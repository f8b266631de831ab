"""Safetensors and conversions: where every expert's bytes lie. Shared by the workers and `expertflow plan`."""
