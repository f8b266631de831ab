"""Where growth_compute.py notes which part of compute's processor time."""

from __future__ import annotations

ALL, FORWARD, LAYERS, KERNELS = range(4)
