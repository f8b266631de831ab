"""Write the page of what a check has found so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .parts import MODELS, PARTS, SHARES
from .results import batches_of, bound_ms, case_of, failure_of, is_rehearsal, judge, plain_rate, result_of

MISSING = "–"
HEADS = [
    "batch", "contender", "ms a step", "quartiles", "tokens/s", "to resident", "hits", "MB a step", "LRU's MB",
    "share of the link", "overlapped", "bound, ms",
]  # fmt: skip
CONTENDERS = ("resident", "accelerate", *(f"ours-{share}" for share in SHARES))


def model_table(folder: Path, model: str) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the decode steps; no row of what has not run."""
    rows = []
    for batch in batches_of(folder, model):
        for name in CONTENDERS:
            row = case_of(folder, f"{model}-{name}", batch)
            if row is not None:
                rows.append([str(batch), name, *_time(folder, model, row), *_link(folder, model, row)])
    return HEADS, rows


def loading(folder: Path, model: str) -> str:
    """Say how long each took to be ready, and the most device memory that torch held where that is known."""
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
    """Return hits, MB a step, LRU's MB, the share of the link, how much copying was hidden, and the targets' bound."""
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


BANNER = "**A rehearsal: no GPU was used, models are tiny, and no figure on this page means anything.**"


def write_page(folder: Path) -> None:
    sections = [
        "# What a GPU has shown",
        BANNER if is_rehearsal(folder) else "",
        _machine(result_of(folder, "rates")),
        _states(folder),
        _targets(folder),
        _exact(result_of(folder, "exact")),
        _mutants(result_of(folder, "mutants")),
        _rates(result_of(folder, "rates")),
        _sharing(result_of(folder, "sharing")),
        _ipc(result_of(folder, "ipc")),
        *(_model(folder, model) for model in MODELS),
    ]
    (folder / "gpu.md").write_text("\n\n".join(section for section in sections if section) + "\n")


def _machine(rates: dict[str, Any] | None) -> str:
    return "" if rates is None else "; ".join(f"{name}: {value}" for name, value in rates["facts"].items())


def _states(folder: Path) -> str:
    """Return what became of each part, and what it may take."""
    rows = []
    for part in PARTS:
        took = (result_of(folder, part.name) or {}).get("took_s")
        seconds = [f"{each:.0f}" for each in (part.expected_s, part.max_s)]
        rows.append([part.name, part.what, _state(folder, part.name), "" if took is None else f"{took:.0f}", *seconds])
    expected = sum(part.expected_s for part in PARTS)
    heads = ["part", "what", "state", "took, s", "expected", "at most"]
    return table(heads, rows) + f"\n\nExpected in all: {expected / 60:.1f} minutes on a machine with an H100."


def _state(folder: Path, part: str) -> str:
    result = result_of(folder, part)
    if result is not None:
        return "holds" if result.get("holds", True) else "**does not hold**"
    failure = failure_of(folder, part)
    return "not run" if failure is None else f"failed: {text(failure.splitlines()[-1] if failure else '')}"


def _targets(folder: Path) -> str:
    rows = [
        [each.what, f"{each.found:.2f}", f"{'<=' if each.at_most else '>='} {each.goal:g}", met(each.met)]
        for each in judge(folder)
    ]
    return "## Targets\n\n" + table(["target", "found", "goal", "met"], rows) if rows else ""


def met(yes: bool) -> str:
    return "met" if yes else "**missed**"


def _exact(result: dict[str, Any] | None) -> str:
    names = ["family", "float32_difference", "tokens_equal", "bfloat16_error_ratio", "bits_equal_to_resident", "error"]
    return _listed("Against transformers", result, names)


def _mutants(result: dict[str, Any] | None) -> str:
    return _listed("Waits left out", result, ["mutant", "caught", "right_with_all_waits"])


def _listed(title: str, result: dict[str, Any] | None, names: list[str]) -> str:
    if result is None:
        return ""
    return f"## {title}\n\n" + table(names, [[text(row.get(name, "")) for name in names] for row in result["rows"]])


def _rates(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    names = ["pinned", "registered", "ordered", "pageable"]
    rows = [[f"{row['piece_bytes'] / 2**20:.3g}", *(giga(row[name]) for name in names)] for row in result["rows"]]
    registering = f"Registering {result['store_bytes'] / 2**20:.3g} MiB took {1e3 * result['registering_s']:.0f} ms."
    return "## Copies to the device, GB/s\n\n" + table(["piece, MiB", *names], rows) + f"\n\n{registering}"


def _sharing(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    rows = [[name, giga(rate)] for name, rate in result["bytes_per_s"].items()]
    return "## One store that two processes have registered\n\n" + table(["copies by", "GB/s"], rows)


def _ipc(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    waits = result["order_to_done_us"]
    rows = [[name, giga(rate), f"{waits[name]:.0f}"] for name, rate in result["bytes_per_s"].items()]
    context = f"The other process's context takes {result['context_bytes'] / 1e6:.0f} MB of the device's memory."
    heads = ["copies by", "GB/s", "a piece, from order to done, us"]
    return "## Who copies into compute's slots\n\n" + table(heads, rows) + f"\n\n{context}"


def _model(folder: Path, model: str) -> str:
    heads, rows = model_table(folder, model)
    lines = [f"## Model {model}: a decode step", table(heads, rows), loading(folder, model)]
    return "\n\n".join(lines) if rows else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def giga(rate: float) -> str:
    return f"{rate / 1e9:.1f}"


def text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("\n", " ").replace("|", "/")
