"""List the parts of a check in the order of their worth; nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .under_test import UnderTest

SHARES = ("100%", "50%", "25%", "12.5%")
MODELS = ("r", "widened-512")
Run = Callable[["UnderTest", Path], dict[str, Any]]


class Part(NamedTuple):
    """Name a part; `run(test, folder)` returns what is kept, and `holds` in it says whether a claim was met."""

    name: str
    what: str
    run: Run
    expected_s: float
    """Estimated for a machine with an H100 (docs/gpu.md), not measured."""
    max_s: float
    """Seconds after which it is ended, and the next one begins."""

    @property
    def min_s(self) -> float:
        """Return the seconds without which it is not begun."""
        return self.expected_s / 2


def _exact(test: UnderTest, folder: Path) -> dict[str, Any]:
    from .exactness import check_families

    return check_families(test)


def _mutants(test: UnderTest, folder: Path) -> dict[str, Any]:
    from .exactness import check_mutants

    return check_mutants(test)


def _rates(test: UnderTest, folder: Path) -> dict[str, Any]:
    from .copies import measure_rates

    return measure_rates(test) | {"facts": test.facts()}


def _sharing(test: UnderTest, folder: Path) -> dict[str, Any]:
    from .copies import measure_sharing

    return measure_sharing(test)


def _ipc(test: UnderTest, folder: Path) -> dict[str, Any]:
    from .copies import measure_ipc

    return measure_ipc(test)


def _model(name: str) -> Run:
    def make(test: UnderTest, folder: Path) -> dict[str, Any]:
        return {"folder": str(test.model_folder(name, folder))}

    return make


def _ours(model: str, share: str) -> Run:
    def measure(test: UnderTest, folder: Path) -> dict[str, Any]:
        from .decoding import measure_ours

        return measure_ours(test, folder, model, share)

    return measure


def _library(model: str, kind: str) -> Run:
    def measure(test: UnderTest, folder: Path) -> dict[str, Any]:
        from .decoding import measure_library

        return measure_library(test, folder, model, kind)

    return measure


def _table(model: str, made_s: float, ours_s: float, resident_s: float, accelerate_s: float) -> list[Part]:
    """List the parts of a model: ExpertFlow with everything resident first, since it draws the tokens."""

    def part(name: str, what: str, run: Run, expected_s: float) -> Part:
        return Part(f"{model}-{name}", what, run, expected_s, 3 * expected_s)

    def ours(share: str) -> Part:
        return part(f"ours-{share}", f"ExpertFlow with {share} of the experts", _ours(model, share), ours_s)

    whole, half, quarter, eighth = map(ours, SHARES)
    return [
        part("model", "the model is made, or found", _model(model), made_s),
        whole,
        part("resident", "transformers, all in the device's memory", _library(model, "resident"), resident_s),
        part("accelerate", "accelerate, a quarter of the weights there", _library(model, "accelerate"), accelerate_s),
        *(quarter, half, eighth),
    ]


PARTS = [
    Part("exact", "I1b, I1c and I1a over families", _exact, 110, 240),
    Part("mutants", "waits that are left out show", _mutants, 20, 60),
    Part("rates", "copies from host memory: plain pinned, registered, as ordered, pageable", _rates, 12, 45),
    Part("sharing", "a store that two processes register", _sharing, 15, 45),
    Part("ipc", "copies by the loader through CUDA IPC beside compute's own", _ipc, 15, 45),
    *_table("r", made_s=30, ours_s=18, resident_s=16, accelerate_s=25),
    *_table("widened-512", made_s=45, ours_s=25, resident_s=28, accelerate_s=48),
]
