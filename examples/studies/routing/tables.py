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
    """Print accuracy and specialisation by kind, stalls behind a link, then the costs."""
    complete = [row for row in rows if row.get("quality") and row.get("routing")]
    if complete:
        console.print(quality_table(complete))
    replayed = [row for row in rows if row.get("stalls")]
    if replayed:
        console.print(stall_table(replayed))
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


def stall_table(rows: list[Row]) -> Table:
    """Return stalls and loads a token of text with a quarter of the slots, by loader: means over the seeds."""
    loaders = list(rows[0]["stalls"])
    names = [f"{what}, {loader}" for loader in loaders for what in ("stall ms", "loads")]
    table = Table("kind", "seeds", *names, title="behind a link, a token of text")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row["stalls"] for row in rows if row["kind"] == kind]
        figures = [[each[loader][key] for each in own] for loader in loaders for key in ("stall_ms", "loads")]
        table.add_row(kind, str(len(own)), *map(_spread, figures))
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
