"""Tables of a finished study as Markdown: `python -m expertflow.examples.studies.recommend.report RESULT.json`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MEASURES = ("hr10", "hr20", "ndcg10", "ndcg20", "auc")


def main() -> int:
    """Write all tables of the result named on the command line to stdout; return 0."""
    result = json.loads(Path(sys.argv[1]).read_text())
    for title, make in TABLES.items():
        sys.stdout.write(f"### {title}\n\n{make(result)}\n\n")
    return 0


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows by the values of these keys, in the order in which they appear."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def anchors(result: Row) -> str:
    """Return AUC by split and model, mean over seeds, beside the earlier run."""
    rows = []
    for (split, model), runs in grouped(result["anchors"], "split", "model").items():
        values = [run["auc"] for run in runs]
        mean, anchor = statistics.mean(values), runs[0]["anchor"]
        spread = f"{min(values):.4f}–{max(values):.4f}"
        far = "" if anchor is None else f"{mean - anchor:+.4f}"
        rows.append((split, model, len(values), f"{mean:.4f}", spread, anchor or "", far))
    return table(("split", "model", "runs", "AUC", "least–most", "earlier", "difference"), rows)


def mean_of(windows: list[Row]) -> Row:
    """Return the plain means over windows of each measure."""
    return {name: statistics.mean(window[name] for window in windows) for name in MEASURES}


def quality(result: Row) -> str:
    """Return the mean quality over windows and seeds, of XSMoE by active experts and of the baselines."""
    rows = []
    for (threshold,), runs in grouped(result["streams"], "threshold").items():
        name = "XSMoE" if threshold else "XSMoE, no pruning"
        for choice in runs[0]["windows"][0]["quality"]:
            means = [mean_of([window["quality"][choice] for window in run["windows"]]) for run in runs]
            rows.append((f"{name}, {choice}", *_over_seeds(means)))
    for (model,), runs in grouped(result["baselines"], "model").items():
        rows.append((model, *_over_seeds([mean_of([w["quality"] for w in run["windows"]]) for run in runs])))
    return table(("model", "runs", "HR@10", "HR@20", "NDCG@10", "NDCG@20", "AUC"), rows)


def _over_seeds(means: list[Row]) -> list[str]:
    values = {name: statistics.mean(mean[name] for mean in means) for name in MEASURES}
    return [str(len(means)), *(f"{values[name]:.3f}" if name == "auc" else f"{values[name]:.2f}" for name in MEASURES)]


def stream(result: Row) -> str:
    """Return the windows of the first run as published: experts, quality, time."""
    run = result["streams"][0]
    rows = []
    for window in run["windows"]:
        dense, single = window["quality"]["dense"], window["quality"]["k=1"]
        rows.append(
            (
                window["window"] + 1,
                dense["questions"],
                _each(window["experts"]),
                sum(number is not None for number in window["pruned"]),
                window["best_epoch"],
                f"{window['absorb_processor_seconds']:.0f}",
                f"{dense['hr10']:.2f}",
                f"{dense['ndcg10']:.2f}",
                f"{dense['auc']:.3f}",
                f"{single['auc']:.3f}",
            )
        )
    header = "window", "questions", "experts a side layer", "pruned after", "best epoch", "processor s to absorb"
    return table((*header, "HR@10", "NDCG@10", "AUC", "AUC, k=1"), rows)


def _each(experts: list[int]) -> str:
    return str(experts[0]) if len(set(experts)) == 1 else ", ".join(map(str, experts))


def absorbing(result: Row) -> str:
    """Return the processor seconds to absorb a window, mean and most over windows and seeds."""
    runs = [("XSMoE" if run["threshold"] else "XSMoE, no pruning", run["windows"]) for run in result["streams"]]
    runs += [(run["model"], run["windows"]) for run in result["baselines"]]
    times: dict[str, list[float]] = {}
    for name, windows in runs:
        times.setdefault(name, []).extend(window["absorb_processor_seconds"] for window in windows)
    rows = [(name, f"{statistics.mean(each):.1f}", f"{max(each):.1f}") for name, each in times.items()]
    return table(("model", "mean", "most"), rows)


def rates(result: Row) -> str:
    """Return rates by model and batch, a second of processor time."""
    batches = sorted({rate["batch"] for rate in result["speed"]})
    rows = []
    for (model, unit), runs in grouped(result["speed"], "model", "unit").items():
        by_batch = {run["batch"]: run for run in runs}
        users = by_batch[batches[-1]]["users_per_second"]
        cells = [_short(by_batch[batch]["per_second"]) for batch in batches]
        rows.append((model, unit, *cells, "" if users is None else _short(users)))
    return table(("model", "unit", *(f"batch {batch:,}" for batch in batches), "users ranked at the largest"), rows)


def memory(result: Row) -> str:
    """Return weights and peak memory of one batch."""
    rows = [
        (row["model"], f"{row['batch']:,}", f"{row['weight_bytes'] / 1e6:.2f}", f"{row['peak_bytes'] / 1e6:.0f}")
        for row in result["memory"]
    ]
    return table(("model", "batch", "weights, MB", "growth by a batch, MB"), rows)


def served(result: Row) -> str:
    """Return hits and loads of each system by top-k and share of slots."""
    rows = []
    for part in result["served"]:
        for row in part["rows"]:
            asked = row["hits"] + row["misses"]
            share = f"{row['slots']} of {part['experts'] * part['layers']}"
            cells = f"{row['hits'] / asked:.3f}", row["loads"], f"{row['read_bytes'] / 1e6:,.0f}"
            exact = "yes" if row["exact"] else "NO"
            rows.append((part["top_k"], share, row["system"], *cells, f"{row['stall_seconds']:.1f}", exact))
        for name, rate in part["counted_hit_rates"].items():
            rows.append((part["top_k"], "", f"(counted) {name}", f"{rate:.3f}", "", "", "", ""))
    return table(("k", "slots", "system", "hit rate", "loads", "MB read", "stall, s", "exact"), rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


TABLES: dict[str, Callable[[Row], str]] = {
    "Anchors": anchors,
    "Quality": quality,
    "Windows": stream,
    "Absorbing": absorbing,
    "Rates": rates,
    "Memory": memory,
    "Served": served,
}

if __name__ == "__main__":
    sys.exit(main())
