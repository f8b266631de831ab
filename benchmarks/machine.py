"""This machine in a line: cores, versions, and what it can do at most."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from .rates import machine_rates

PACKAGES = ("torch", "transformers", "numpy")


def machine_line() -> str:
    """Measures the rates: some seconds."""
    rates = ", ".join(f"{name} {rate / 1e9:.1f} {unit}" for name, (rate, unit) in machine_rates().items())
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{len(os.sched_getaffinity(0))} cores, python {platform.python_version()}, {packages}; {rates}."
