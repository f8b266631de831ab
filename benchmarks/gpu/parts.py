"""The parts of a check in the order of their worth; nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHARES = ("100%", "50%", "25%", "12.5%")
MODELS = ("r", "widened-512")
FAMILIES_AT_ONCE = ("olmoe", "mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe")


class Part(NamedTuple):
    """`run(folder)` gives what becomes its JSON; `holds` in it says whether a claim was met."""

    name: str
    what: str
    run: Callable[[Path], dict[str, Any]]
    most_s: float
    least_s: float = 5.0
    """With less time it is not begun."""


def _exact(folder: Path) -> dict[str, Any]:
    from .exact import check_families

    return check_families(FAMILIES_AT_ONCE)


def _mutants(folder: Path) -> dict[str, Any]:
    from .mutants import check_mutants

    return check_mutants()


def _rates(folder: Path) -> dict[str, Any]:
    from .rates import measure_rates

    return measure_rates()


def _sharing(folder: Path) -> dict[str, Any]:
    from .sharing import measure_sharing

    return measure_sharing()


def _model(name: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        from .models import folder_of

        return {"folder": str(folder_of(name))}

    return make


def _ours(model: str, share: str) -> Callable[[Path], dict[str, Any]]:
    def measure(folder: Path) -> dict[str, Any]:
        from .contenders import measure_ours

        return measure_ours(folder, model, share)

    return measure


def _library(model: str, kind: str) -> Callable[[Path], dict[str, Any]]:
    def measure(folder: Path) -> dict[str, Any]:
        from .contenders import measure_library

        return measure_library(folder, model, kind)

    return measure


def _table(model: str) -> list[Part]:
    ours = [
        Part(f"{model}-ours-{share}", f"model {model}, ExpertFlow with {share} of the experts", _ours(model, share), 90)
        for share in SHARES
    ]
    return [
        Part(f"{model}-model", f"model {model} is made, or found", _model(model), 300),
        *ours,
        Part(f"{model}-resident", f"model {model}, transformers, all in GPU memory", _library(model, "resident"), 60),
        Part(f"{model}-accelerate", f"model {model}, accelerate, offloaded", _library(model, "accelerate"), 90),
    ]


PARTS = [
    Part("exact", "I1b, I1c and I1a over families", _exact, 180),
    Part("mutants", "waits that are left out show", _mutants, 60),
    Part("rates", "copies from host memory: plain pinned, registered, pageable", _rates, 60),
    Part("sharing", "a store that two processes register; copies by the loader through CUDA IPC", _sharing, 60),
    *(part for model in MODELS for part in _table(model)),
]
