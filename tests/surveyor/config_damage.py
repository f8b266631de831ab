"""Valid config.json files with one value damaged: its type, its sign, its size, or gone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MISSING: Any = object()
DAMAGE: dict[str, Any] = {
    "null": None,
    "text": "nonsense",
    "negative": -3,
    "zero": 0,
    "one": 1,
    "large": 10**9,
    "huge": 2**70,
    "largest float": 1e308,
    "nan": float("nan"),
    "true": True,
    "empty list": [],
    "odd list": [None, 3],
    "object": {},
    "missing": MISSING,
}

KeyPath = tuple[str, ...]


def key_paths(values: dict[str, Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of a config.json, nested ones included."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from key_paths(value, (*path, key))


def damaged(values: dict[str, Any], path: KeyPath, damage: str) -> dict[str, Any]:
    """A copy of `values` with one of them damaged."""
    changed = copy.deepcopy(values)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    if DAMAGE[damage] is MISSING:
        del inside[path[-1]]
    else:
        inside[path[-1]] = DAMAGE[damage]
    return changed


def write_config(folder: Path, values: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
