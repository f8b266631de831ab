"""Make the tables of the study: the base case, the targets, each axis, and what each part is worth."""

from __future__ import annotations

from collections.abc import Sequence

from ..experiments.tables import Cell as Text
from ..experiments.tables import markdown
from .cells import BASE, BATCHES, LINKS, SLOTS, Cell
from .figures import cell_of, decode_rate_of, figures_of, find_pair, rate_of, share_equal, speed_up
from .measure import Result
from .systems import CACHE_MOE, CLAIMS, EXPERTFLOW, MAIN, NAMES, ORACLE, SE_MOE, find_system

CACHE_TARGET, SE_TARGET, ORACLE_TARGET, SHIPPED_TARGET = 1.5, 2.0, 1.2, 1.3
HEAD = (
    "", "tokens/s", "ExpertFlow is ×", "decoding alone", "ExpertFlow is ×", "paper", "hit ratio", "loads a token",
    "wasted", "step ÷ bound", "overlap", "memory saved", "same tokens",
)  # fmt: skip
EXPLAINED = """\
The engines of a run live side by side and take their blocks in turn; only rows of one run, from an ExpertFlow to the
next, can be compared. tokens/s: median over blocks (one a workload and round), prompts included; in brackets the 95 %
interval. decoding alone: tokens/s once every sequence of a block has its first token. "ExpertFlow is ×": the median of
ratios of the same blocks, of the column to its left. wasted: prefetches a token that no layer used. step ÷ bound:
elapsed time over the larger of computing and transferring. overlap: share of the shorter of the two that ran beside the
longer. memory saved: share of the experts' bytes that slots do not take. same tokens: share of the sequences equal to
those of ExpertFlow with the path predictor; bfloat16 rounds differently in other batches, and tokens are drawn."""

Runs = Sequence[Sequence[Result]]


def page(command: str, about: str, runs: Runs, failures: dict[str, str]) -> str:
    """Return all tables of the study."""
    parts = [
        "# The paper's comparison: tables",
        f"```\n{command}\n```",
        about,
        EXPLAINED,
        "## The base case: a quarter of the slots, batch 8, a link of half of what on demand needs",
        setting_table(runs, BASE),
        "## Targets",
        targets(runs),
        "## Twice the batch",
        setting_table(runs, BASE._replace(batch=2 * BASE.batch)),
        *(f"## By {axis}\n\n{axis_table(runs, axis, values)}" for axis, values in AXES.items()),
        "## By workload, base case\n\n" + workload_table(runs),
        "## Model R: 64 experts a layer, top-8, random weights\n\n" + setting_table(runs, BASE._replace(model="r")),
    ]
    if failures:
        parts += ["## Left out", *(f"- {name}: {why}" for name, why in failures.items())]
    return "\n\n".join(parts) + "\n"


AXES: dict[str, Sequence[object]] = {"link": LINKS, "slots": SLOTS, "batch": BATCHES}


def setting_table(runs: Runs, setting: Cell) -> str:
    """Return a row for every system that was measured in this setting, run by run."""
    there = in_setting(runs, setting)
    return markdown(HEAD, [_row(result, run[0]) for run in there for result in run])


def in_setting(runs: Runs, setting: Cell) -> Runs:
    """Return the runs of a setting, those of the main systems first."""
    there = [run for run in runs if cell_of(run[0]).setting == setting.setting]
    return sorted(there, key=lambda run: NAMES.index(run[1]["system"]))


def _row(result: Result, base: Result) -> Sequence[Text]:
    figures, name = figures_of(result), result["system"]
    beside = name != EXPERTFLOW
    return (
        name,
        str(figures.tokens_per_s),
        str(speed_up(base, result)) if beside else None,
        str(figures.decoded_per_s),
        str(speed_up(base, result, decode_rate_of)) if beside else None,
        CLAIMS.get(name),
        f"{figures.hit_ratio:.3f}",
        f"{figures.loads_a_token:.2f}",
        f"{figures.wasted_a_token:.2f}",
        f"{figures.step_of_bound:.2f}",
        f"{figures.overlap:.2f}",
        f"{100 * figures.saved_memory:.1f} %",
        f"{share_equal(result, base):.2f}" if beside else None,
    )


def targets(runs: Runs) -> str:
    """Return each target of the study beside what was measured."""
    lines: list[Sequence[Text]] = []
    for batch in (BASE.batch, 2 * BASE.batch):
        setting = BASE._replace(batch=batch)
        for other, target in ((CACHE_MOE, CACHE_TARGET), (SE_MOE, SE_TARGET)):
            if pair := find_pair(runs, setting._replace(system=other)):
                for kind, rate in (("", rate_of), (", decoding alone", decode_rate_of)):
                    ratio = speed_up(*pair, rate)
                    what = f"ExpertFlow over {other}, batch {batch}{kind}"
                    lines.append((what, f"≥ {target}", str(ratio), _verdict(ratio.estimate >= target)))
        for name, target in ((EXPERTFLOW, SHIPPED_TARGET), (ORACLE, ORACLE_TARGET)):
            if pair := find_pair(runs, setting._replace(system=name)):
                bound = figures_of(pair.other).step_of_bound
                what = f"step ÷ bound, {name}, batch {batch}"
                lines.append((what, f"≤ {target}", f"{bound:.2f}", _verdict(bound <= target)))
    return markdown(("", "target", "measured", ""), lines)


def _verdict(holds: bool) -> str:
    return "met" if holds else "missed"


def axis_table(runs: Runs, axis: str, values: Sequence[object]) -> str:
    """Return ExpertFlow's tokens a second along one axis of the base case, and how many times as fast it is."""

    def text(system: str, value: object) -> str | None:
        pair = find_pair(runs, BASE._replace(system=system, **{axis: value}))
        if pair is None:
            return None
        return str(figures_of(pair.expertflow).tokens_per_s if system == EXPERTFLOW else speed_up(*pair))

    names = {EXPERTFLOW: f"{EXPERTFLOW}: tokens/s"} | {system: f"× {system}" for system in MAIN[1:]}
    lines = [(name, *(text(system, value) for value in values)) for system, name in names.items()]
    return markdown((axis, *map(str, values)), lines)


def workload_table(runs: Runs) -> str:
    """Return the tokens a second by workload in the base case, run by run."""
    there = [result for run in in_setting(runs, BASE) for result in run]
    names = list(dict.fromkeys(block["workload"] for result in there for block in result["blocks"]))
    return markdown(("", *names), [(result["system"], *(_rate_in(result, name) for name in names)) for result in there])


def _rate_in(result: Result, workload: str) -> str:
    blocks = [block for block in result["blocks"] if block["workload"] == workload]
    tokens, seconds = (sum(block[key] for block in blocks) for key in ("tokens", "seconds"))
    return f"{tokens / seconds:.1f}"


def systems_list() -> str:
    """Return what each system is, a line each."""
    return "\n".join(f"- {name}: {find_system(name).what}" for name in NAMES)
