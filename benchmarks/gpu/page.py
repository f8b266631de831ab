"""The page of what a check has found so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .parts import MODELS, PARTS, SHARES
from .results import failure_of, result_of

MISSING = "–"


def write_page(folder: Path) -> None:
    sections = [
        "# What a GPU has shown",
        _states(folder),
        _exact(result_of(folder, "exact")),
        _mutants(result_of(folder, "mutants")),
        _rates(result_of(folder, "rates"), result_of(folder, "sharing")),
        *(_model(folder, model) for model in MODELS),
    ]
    (folder / "gpu.md").write_text("\n\n".join(section for section in sections if section) + "\n")


def _states(folder: Path) -> str:
    return table(["part", "state"], [[part.name, _state(folder, part.name)] for part in PARTS])


def _state(folder: Path, part: str) -> str:
    result = result_of(folder, part)
    if result is not None:
        return "holds" if result.get("holds", True) else "**does not hold**"
    failure = failure_of(folder, part)
    return "not run" if failure is None else f"failed: {failure.splitlines()[-1] if failure else ''}"


def _exact(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    names = ["family", "float32_difference", "tokens_equal", "bfloat16_error_ratio", "bits_equal_to_resident", "error"]
    rows = [[_text(row.get(name, "")) for name in names] for row in result["rows"]]
    return "## Against transformers\n\n" + table(names, rows)


def _mutants(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    names = ["mutant", "caught", "right_with_all_waits"]
    return "## Waits left out\n\n" + table(names, [[_text(row[name]) for name in names] for row in result["rows"]])


def _rates(rates: dict[str, Any] | None, sharing: dict[str, Any] | None) -> str:
    parts = []
    if rates is not None:
        names = ["pinned", "registered", "pageable"]
        rows = [[str(row["piece_mib"]), *(f"{row[name] / 1e9:.1f}" for name in names)] for row in rates["rows"]]
        title = f"## Copies to {rates['device']}, GB/s\n\n"
        parts.append(title + table(["piece, MiB", *names], rows))
    if sharing is not None:
        rows = [[name, _text(value)] for name, value in sharing.items()]
        parts.append("## Two processes over one store\n\n" + table(["", ""], rows))
    return "\n\n".join(parts)


def _model(folder: Path, model: str) -> str:
    """A decode step of every contender, and what the link carried."""
    names = ["resident", "accelerate", *(f"ours-{share}" for share in SHARES)]
    results = {name: result_of(folder, f"{model}-{name}") for name in names}
    if not any(results.values()):
        return ""
    rate = _plain_rate(folder)
    batches = len(next(result for result in results.values() if result)["rows"])
    rows = [_row(results, name, place, rate) for place in range(batches) for name in names if results[name]]
    heads = ["batch", "contender", "ms a step", "to resident", "hits", "MB a step", "share of the link", "overlapped"]
    return f"## Model {model}: a decode step\n\n" + table(heads, rows)


def _row(results: dict[str, Any], name: str, place: int, rate: float | None) -> list[str]:
    row = results[name]["rows"][place]
    resident = results["resident"]["rows"][place]["step_ms"] if results["resident"] else None
    to_resident = f"{row['step_ms'] / resident:.2f}" if resident else MISSING
    batch = _batch(results, place)
    return [str(batch), name, f"{row['step_ms']:.2f}", to_resident, *_link(results, row, place, batch, rate)]


def _batch(results: dict[str, Any], place: int) -> int | str:
    drawn = results["ours-100%"] or next(
        (each for name, each in results.items() if name.startswith("ours") and each), None
    )
    return len(drawn["rows"][place]["tokens"]) if drawn else MISSING


def _link(results: dict[str, Any], row: dict[str, Any], place: int, batch: int | str, rate: float | None) -> list[str]:
    """Hits, bytes a step, their share of what the link could carry meanwhile, and how much of the copying was hidden
    behind what takes as long with every expert there."""
    facts = row["facts"]
    if not facts or not isinstance(batch, int):
        return [MISSING] * 4
    step_bytes = facts["bytes_per_token"] * batch
    found = [f"{100 * facts['hit_ratio']:.1f} %", f"{step_bytes / 1e6:.1f}"]
    whole = results["ours-100%"]
    if rate is None or whole is None or step_bytes == 0:
        return [*found, MISSING, MISSING]
    copy_ms = 1e3 * step_bytes / rate
    exposed_ms = max(row["step_ms"] - whole["rows"][place]["step_ms"], 0.0)
    return [*found, f"{100 * copy_ms / row['step_ms']:.0f} %", f"{100 * max(1 - exposed_ms / copy_ms, 0):.0f} %"]


def _plain_rate(folder: Path) -> float | None:
    rates = result_of(folder, "rates")
    return None if rates is None else max(row["pinned"] for row in rates["rows"])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("\n", " ").replace("|", "/")
