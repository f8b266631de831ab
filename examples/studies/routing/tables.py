"""Tables of the study in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from rich.console import Console
from rich.table import Table

from ..resumable import Row

_Figure = Callable[[Row], float]
_QUALITY: dict[str, _Figure] = {
    "steps": lambda row: row["train"]["steps"],
    "VQA-v2 form": lambda row: row["quality"]["vqa"]["overall"],
    "yes/no": lambda row: row["quality"]["vqa"]["by_answer_type"]["yes/no"],
    "MMBench form, circular": lambda row: row["quality"]["mmbench"]["circular"],
    "plain": lambda row: row["quality"]["mmbench"]["plain"],
    "SEED form": lambda row: row["quality"]["seed"]["overall"],
    "mean": lambda row: row["quality"]["mean"],
    "MSI": lambda row: mean(row["routing"]["msi"]),
    "kFLOP a token": lambda row: row["routing"]["expert_flops_a_token"] / 1e3,
    "experts a step of 8": lambda row: row["routing"]["experts_a_decode_step"]["8"],
    "loads a token, LRU": lambda row: row["routing"]["loads_a_token"]["lru"],
    "knowing bins": lambda row: row["routing"]["loads_a_token"]["bins"],
}


def show_results(rows: list[Row], console: Console) -> None:
    """Print accuracy and specialisation by kind, then the costs."""
    complete = [row for row in rows if row.get("quality") and row.get("routing")]
    if complete:
        console.print(quality_table(complete))
    measured = [row for row in rows if row.get("costs")]
    if measured:
        console.print(cost_table(measured))


def quality_table(rows: list[Row]) -> Table:
    """Return the mean over the seeds and, behind it, the least and the greatest."""
    table = Table("kind", "seeds", *_QUALITY, title="accuracy and specialisation")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        table.add_row(kind, str(len(own)), *(_spread([figure(row) for row in own]) for figure in _QUALITY.values()))
    return table


def _spread(values: list[float]) -> str:
    middle = mean(values)
    digits = 0 if middle > 100 else 3 if middle < 2 else 1
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def cost_table(rows: list[Row]) -> Table:
    """Return times and memory, a line for each kind, number of images and batch size."""
    names = ("kind", "images", "batch", "prompt ms", "step ms", "tokens/s", "peak MB")
    table = Table(*names, title="costs in transformers, one thread")
    for row in rows:
        for each in row["costs"]["times"]:
            times = (f"{each[name]:.1f}" for name in ("prompt_ms", "step_ms", "decode_tokens_per_s", "peak_mb"))
            table.add_row(row["kind"], str(each["images"]), str(each["batch"]), *times)
    return table
