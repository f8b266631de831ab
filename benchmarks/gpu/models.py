"""The models of the table, made at the first call and kept with this user's caches."""

from __future__ import annotations

from pathlib import Path

from expertflow.runtime.demo.widened import cache_folder, widened_copy

from ..models import EXAMPLES, model_r

WIDENED = "widened-"


def folder_of(name: str) -> Path:
    """Model R (3.3 GB, random), or the built-in model widened by a factor (512: 7.5 GB of experts)."""
    if name == "r":
        return model_r()
    return widened_copy(EXAMPLES / "model", cache_folder(), int(name.removeprefix(WIDENED)))
