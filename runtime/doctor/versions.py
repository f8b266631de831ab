"""Versions that ExpertFlow was tested with, beside those that it needs at least."""

from __future__ import annotations

import re
from importlib import metadata
from itertools import zip_longest

DISTRIBUTION = "expertflow-runtime"
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "pyzmq": "27.3.0",
    "msgspec": "0.22.0",
    "numpy": "2.4.6",
}
"""Package -> the version in constraints.txt, with which the tests run."""
TESTED_PYTHONS = ("3.11", "3.12", "3.13")
PACKAGES = tuple(TESTED)


def least_versions() -> dict[str, str]:
    """Return package -> the least version that the installed distribution asks for; empty if it is not installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", each) for each in requirements if "extra ==" not in each)
    return {match[1]: match[2] for match in found if match}


def is_below(version: str, least: str) -> bool:
    """Return whether a version is older than another; only their numbers count (2.13.0+cpu is 2.13.0)."""
    pairs = zip_longest(_numbers(version), _numbers(least), fillvalue=0)
    return next((mine < other for mine, other in pairs if mine != other), False)


def release(version: str) -> str:
    """Return the release that a version belongs to: its first two numbers."""
    return ".".join(map(str, _numbers(version)[:2]))


def _numbers(version: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []
