"""Keep what a check has found, in one file between runs, and judge the targets of a GPU by it.

The file holds the result of each part, or why there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from expertflow.errors import UsageError

from .parts import MODELS, SHARES

FILE = "results.json"
REHEARSAL = "rehearsal"


def begin(folder: Path, rehearsal: bool) -> None:
    """Make the folder. Raises UsageError if it holds figures of the other kind."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = _read(folder)
    if kept.setdefault(REHEARSAL, rehearsal) != rehearsal:
        kind = "a rehearsal" if kept[REHEARSAL] else "a run on a GPU"
        raise UsageError(f"holds the results of {kind}", str(folder), "Give another folder with --out")
    _write(folder, kept)


def is_rehearsal(folder: Path) -> bool:
    return bool(_read(folder).get(REHEARSAL))


def save_result(folder: Path, part: str, result: dict[str, Any]) -> None:
    kept = _read(folder)
    kept["failures"].pop(part, None)
    kept["results"][part] = result
    _write(folder, kept)


def save_failure(folder: Path, part: str, words: str) -> None:
    kept = _read(folder)
    kept["failures"][part] = words
    _write(folder, kept)


def result_of(folder: Path, part: str) -> dict[str, Any] | None:
    return _read(folder)["results"].get(part)


def failure_of(folder: Path, part: str) -> str | None:
    return _read(folder)["failures"].get(part)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {"results": {}, "failures": {}}


def _write(folder: Path, kept: dict[str, Any]) -> None:
    partial = folder / f".{FILE}.partial"
    partial.write_text(json.dumps(kept, indent=1) + "\n")
    partial.rename(folder / FILE)


RATE_SHARE = 0.85
BOUND = 1.2
TO_ACCELERATE = 5.0
AT_BATCH, AT_SHARE = 8, "25%"
"""Setting of the comparison with accelerate, which has a quarter of the weights on the device."""
Rows = dict[str, Any]


class Target(NamedTuple):
    what: str
    found: float
    goal: float
    at_most: bool = False
    """Else the least that is wanted."""

    @property
    def met(self) -> bool:
        return self.found <= self.goal if self.at_most else self.found >= self.goal


def target_line(target: Target) -> str:
    sign = "<=" if target.at_most else ">="
    return f"{'met' if target.met else 'MISSED'}: {target.what}: {target.found:.2f} ({sign} {target.goal:g})"


def judge(folder: Path) -> list[Target]:
    """Judge the targets for which there is all that they need."""
    return [*_rates(folder), *(each for model in MODELS for each in (*_steps(folder, model), *_speed(folder, model)))]


def plain_rate(folder: Path) -> float | None:
    """Return the bytes a second that copies from a plain pinned tensor reach at best."""
    rates = result_of(folder, "rates")
    return None if rates is None else max(row["pinned"] for row in rates["rows"])


def case_of(folder: Path, part: str, batch: int) -> Rows | None:
    result = result_of(folder, part)
    return None if result is None else next((row for row in result["rows"] if row["batch"] == batch), None)


def batches_of(folder: Path, model: str) -> list[int]:
    """Return the batch sizes of any contender that has run."""
    names = ["resident", "accelerate", *(f"ours-{share}" for share in SHARES)]
    results = [result_of(folder, f"{model}-{name}") for name in names]
    return sorted({row["batch"] for result in results if result for row in result["rows"]})


def bound_ms(folder: Path, model: str, row: Rows) -> float | None:
    """Return the larger of computing with everything resident and of loading what LRU would, in milliseconds.

    Computing is ours or transformers', whichever is faster; loading is at the rate of plain copies. Both are means,
    since bytes differ from step to step.
    """
    batch, rate = row["batch"], plain_rate(folder)
    resident = [case_of(folder, f"{model}-{name}", batch) for name in ("resident", f"ours-{SHARES[0]}")]
    times = [each["mean_step_ms"] for each in resident if each]
    if rate is None or not times:
        return None
    return max(min(times), 1e3 * row["lru_bytes_per_step"] / rate)


def _rates(folder: Path) -> Iterator[Target]:
    rates = result_of(folder, "rates")
    for row in [] if rates is None else rates["rows"]:
        for way, words in (("registered", "from the registered store"), ("ordered", "as the engine orders them")):
            share = row[way] / row["pinned"]
            what = f"copies of {row['piece_bytes'] / 2**20:.3g} MiB {words}, of the plain pinned rate"
            yield Target(what, share, RATE_SHARE)


def _steps(folder: Path, model: str) -> Iterator[Target]:
    for share in SHARES:
        result = result_of(folder, f"{model}-ours-{share}")
        for row in [] if result is None else result["rows"]:
            bound = bound_ms(folder, model, row)
            if bound is not None:
                ratio = row["mean_step_ms"] / bound
                what = f"model {model}, {share}, batch {row['batch']}: a step, of max(resident, LRU's bytes / rate)"
                yield Target(what, ratio, BOUND, at_most=True)


def _speed(folder: Path, model: str) -> Iterator[Target]:
    ours, theirs = (case_of(folder, f"{model}-{name}", AT_BATCH) for name in (f"ours-{AT_SHARE}", "accelerate"))
    if ours and theirs:
        times = theirs["mean_step_ms"] / ours["mean_step_ms"]
        what = f"model {model}, batch {AT_BATCH}: speed with {AT_SHARE} of the experts, of accelerate's"
        yield Target(what, times, TO_ACCELERATE)
