"""Versions that a report of a fault needs: what `expertflow --version` prints, within milliseconds."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ... import __version__
from ...workers.kernels.library import NO_VARIANT, absence, usable_variants

PACKAGES = ("torch", "transformers")


def version_lines() -> list[str]:
    """Return `NAME VERSION` for the package itself, Python, torch, transformers and the native kernels.

    Nothing is imported but the library of the kernels.
    """
    packages = [f"{name} {_version_of(name)}" for name in PACKAGES]
    return [f"expertflow {__version__}", f"python {platform.python_version()}", *packages, f"kernels {_kernels()}"]


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


def _kernels() -> str:
    """Return the variants of the native kernels that this CPU runs, best first, or why there are none."""
    if reason := absence():
        return f"of torch alone: {reason}"
    return ", ".join(usable_variants()) or f"of torch alone: {NO_VARIANT}"
