"""Write results as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from .figures import Figures
from .systems import ALL_PARTS, CACHE_MOE, EXPERTFLOW, SE_MOE

Cell = str | float | int | None
CLAIMS = {SE_MOE: "2.0–5.9×", CACHE_MOE: "1.9–2.2×"}
"""Claims of the paper: throughput of ExpertFlow over theirs (on GPUs, other models)."""
WHY_OTHERS = (
    "Other batches (of two units) round differently in bfloat16; in float32 all must be equal (`--dtype float32`)."
)
COLUMNS = {
    "tokens_per_s": "tokens/s",
    "slowest_block": "slowest",
    "fastest_block": "fastest",
    "hit_ratio": "hit ratio",
    "activated_a_step": "activated a step",
    "activated_a_token": "activated a token",
    "loads_a_token": "loads a token",
    "loaded_mb_a_token": "MB a token",
    "useful_a_token": "useful",
    "wasted_a_token": "wasted",
    "accuracy": "accuracy",
    "stall_share": "stall",
    "cpu_ms_a_token": "CPU ms a token",
    "expert_memory_mb": "experts MB",
    "pss_mb": "PSS MB",
    "equal_tokens": "equal tokens",
    "way": "ended with",
}
LEGEND = """\
- **tokens/s**: generated tokens, prompts included; median of the blocks, with the slowest and the fastest.
- **hit ratio**: share of the experts a layer needed that were there when it began.
- **activated**: distinct experts of all layers, a step (of one unit) and a generated token.
- **loads**, **MB**: experts brought into slots, and their size, a generated token.
- **useful**, **wasted**: prefetches a generated token that were used, or not.
- **accuracy**: of forecasts, as the loader measured it last.
- **stall**: share of the time that compute waited for experts. **CPU ms**: of all stages.
- **experts MB**: expert slots. **PSS MB**: all processes, this one included, and a host tier's store of all experts.
- **equal tokens**: share of the sequences with the tokens that the first system had at this batch size.
- **ended with**: what was kept of units, prediction and grouping (prediction: where there is any)."""


class Failure(TypedDict):
    """Name a cell that is not in the table, and why."""

    cell: str
    why: str


class Results(TypedDict):
    """Hold what is written as JSON."""

    command: str
    versions: dict[str, str]
    setting: str
    systems: dict[str, str]
    """Description of each system, by name."""
    rows: list[Figures]
    left_out: list[Failure]


def page(results: Results) -> str:
    """Return all tables, with what is needed to run them again."""
    parts = [f"# Experiments\n\n{results['setting']}\n\n```\n{results['command']}\n```"]
    parts.append(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    parts.append(exactness(results["rows"]))
    parts += _grids(results["rows"])
    parts += ["## Speed-up beside the paper's claims", speedups(results["rows"])]
    parts += ["## Without one part", ablation(results["rows"])]
    parts += ["## What the columns say", LEGEND]
    parts += ["## What the systems are", markdown(("system", "what"), list(results["systems"].items()), ":--")]
    if results["left_out"]:
        left_out = [(each["cell"], each["why"]) for each in results["left_out"]]
        parts += ["## Left out", markdown(("what", "why"), left_out, ":--")]
    return "\n\n".join(parts) + "\n"


def exactness(rows: Sequence[Figures]) -> str:
    """Say whether every system gave the same tokens."""
    unlike = [row for row in rows if row["equal_tokens"] != 1]
    if not unlike:
        return f"All {len(rows)} cells gave the same tokens at the same batch size."
    named = ", ".join(f"{name(row)}: {row['equal_tokens']}" for row in unlike)
    equal = f"{len(rows) - len(unlike)} of {len(rows)} cells gave the same tokens at the same batch size"
    return f"{equal}. Others: {named}. {WHY_OTHERS}"


def name(row: Figures) -> str:
    """Return the name of a cell."""
    return f"{row['system']} ({row['slots']}, batch {row['batch']})"


def _grids(rows: Sequence[Figures]) -> list[str]:
    parts = []
    for slots, batch in dict.fromkeys((row["slots"], row["batch"]) for row in rows):
        chosen = [row for row in rows if (row["slots"], row["batch"]) == (slots, batch)]
        lines = [(row["system"], *(row[column] for column in COLUMNS)) for row in chosen]
        parts += [f"## {slots} of the experts, batch {batch}", markdown(("system", *COLUMNS.values()), lines)]
    return parts


def speedups(rows: Sequence[Figures]) -> str:
    """Return ExpertFlow's throughput over the others', beside what the paper says."""
    rates = {(row["system"], row["slots"], row["batch"]): row["tokens_per_s"] for row in rows}
    cells = list(dict.fromkeys((slots, batch) for _, slots, batch in rates))
    lines = []
    for other in dict.fromkeys(row["system"] for row in rows if row["group"] != "ablation"):
        ratios = [_times(rates.get((EXPERTFLOW, *cell)), rates.get((other, *cell))) for cell in cells]
        if other != EXPERTFLOW:
            lines.append((other, *ratios, CLAIMS.get(other)))
    return markdown(("ExpertFlow over", *(f"{slots}, batch {batch}" for slots, batch in cells), "paper"), lines)


def ablation(rows: Sequence[Figures]) -> str:
    """Return what each part is worth: throughput, loads and stalls relative to all parts."""
    lines = []
    for row in rows:
        base = _base(rows, row)
        if row["group"] == "ablation" and base is not None:
            rate = _times(row["tokens_per_s"], base["tokens_per_s"])
            loads = _times(row["loads_a_token"], base["loads_a_token"])
            lines.append((name(row), rate, loads, row["hit_ratio"], row["activated_a_token"], row["stall_share"]))
    return markdown(("", "tokens/s", "loads", "hit ratio", "activated a token", "stall"), lines)


def _base(rows: Iterable[Figures], row: Figures) -> Figures | None:
    where = (ALL_PARTS, row["slots"], row["batch"])
    return next((each for each in rows if (each["system"], each["slots"], each["batch"]) == where), None)


def _times(mine: float | None, theirs: float | None) -> str | None:
    return f"{mine / theirs:.2f}×" if mine is not None and theirs else None


def markdown(head: Sequence[str], lines: Iterable[Sequence[Cell]], align: str = "--:") -> str:
    """Return a table; None is a dash. `align`: of all columns but the first."""
    rule = [":--", *[align] * (len(head) - 1)]
    texts = [["–" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(head), rule, *texts])
