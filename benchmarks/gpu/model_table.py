"""A decode step of every contender: what it takes, and what the link carries meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .parts import SHARES
from .results import result_of
from .targets import batches_of, bound_ms, case_of, plain_rate

MISSING = "–"
HEADS = [
    "batch", "contender", "ms a step", "quartiles", "tokens/s", "to resident", "hits", "MB a step", "LRU's MB",
    "share of the link", "overlapped", "bound, ms",
]  # fmt: skip
CONTENDERS = ("resident", "accelerate", *(f"ours-{share}" for share in SHARES))


def model_table(folder: Path, model: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows; no row of what has not run."""
    rows = []
    for batch in batches_of(folder, model):
        for name in CONTENDERS:
            row = case_of(folder, f"{model}-{name}", batch)
            if row is not None:
                rows.append([str(batch), name, *_time(folder, model, row), *_link(folder, model, row)])
    return HEADS, rows


def loading(folder: Path, model: str) -> str:
    """How long each took to be ready, and the most that torch held of the device's memory where that is known."""
    words = []
    for name in CONTENDERS:
        result = result_of(folder, f"{model}-{name}")
        if result is not None:
            peak = f", at most {result['peak_bytes'] / 1e9:.2f} GB" if result.get("peak_bytes") else ""
            words.append(f"{name} {result['ready_s']:.1f} s{peak}")
    return f"Ready after: {'; '.join(words)}."


def _time(folder: Path, model: str, row: dict[str, Any]) -> list[str]:
    resident = case_of(folder, f"{model}-resident", row["batch"])
    low, high = row["step_quartiles_ms"]
    times = f"{row['step_ms'] / resident['step_ms']:.2f}" if resident else MISSING
    return [f"{row['step_ms']:.2f}", f"{low:.2f} – {high:.2f}", f"{1e3 * row['batch'] / row['step_ms']:.0f}", times]


def _link(folder: Path, model: str, row: dict[str, Any]) -> list[str]:
    """Hits, bytes a step, LRU's, their share of what the link could carry meanwhile, how much of the copying was hidden
    behind what takes as long with every expert there, and the bound of the targets."""
    facts = row["facts"]
    if "bytes_per_token" not in facts:
        return [MISSING] * 6
    step_bytes = facts["bytes_per_token"] * row["batch"]
    hits = f"{100 * facts['hit_ratio']:.1f} %" if "hit_ratio" in facts else MISSING
    found = [hits, f"{step_bytes / 1e6:.1f}", f"{row['lru_bytes_per_step'] / 1e6:.1f}"]
    bound = bound_ms(folder, model, row)
    return [*found, *_hidden(folder, model, row, step_bytes), MISSING if bound is None else f"{bound:.2f}"]


def _hidden(folder: Path, model: str, row: dict[str, Any], step_bytes: float) -> list[str]:
    rate, whole = plain_rate(folder), case_of(folder, f"{model}-ours-{SHARES[0]}", row["batch"])
    if rate is None or whole is None or step_bytes == 0:
        return [MISSING] * 2
    copy_ms = 1e3 * step_bytes / rate
    exposed_ms = max(row["mean_step_ms"] - whole["mean_step_ms"], 0.0)
    return [f"{100 * copy_ms / row['mean_step_ms']:.0f} %", f"{100 * max(1 - exposed_ms / copy_ms, 0):.0f} %"]
