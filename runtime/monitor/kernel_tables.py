"""The report of `expertflow doctor` as tables: facts of machine and kernels, and the kernel table of a model."""

from __future__ import annotations

from rich.table import Table

from ...configs.sizes import format_size
from ...workers.kernels.report import KernelReport
from ...workers.kernels.table import KERNELS, ROW_STEPS, KernelTable
from .tables import UNKNOWN, plain_table

ORIGINS = {
    "rule": "by the rule: no shape is large enough to be timed",
    "forced": "forced by the option kernels",
    "file": "read from the file that the option kernels names",
    "measured": "timed now",
    "cache": "timed before, and kept",
}
"""Origin of a table -> what it means for the user."""
LOST = (
    "without them 16-bit experts run through torch alone: several times slower on a CPU with AVX2 only, and each "
    "expert is a call of its own"
)


def machine_rows(report: KernelReport, cores: int, available_bytes: int) -> dict[str, str]:
    """Return label -> text of the machine and its kernels."""
    native = f"{report.native} (this CPU can run {', '.join(report.variants)})" if report.native else "none"
    rows = {
        "CPU": report.cpu,
        "flags that matter": " ".join(report.flags) or "none",
        "cores": f"{cores}; compute uses {report.threads} threads",
        "memory available": format_size(available_bytes),
        "torch": f"{report.torch}, {report.capability}",
        **{f"{name} is set": value for name, value in report.caps.items()},
        "native kernels": native,
    }
    if report.missing:
        rows |= {"why not": report.missing, "what is lost": LOST}
    return {**rows, "kernel tables in": report.cache or "no folder: this user has no home"}


def shape_tables(table: KernelTable) -> dict[str, Table]:
    """Return shape -> a table of microseconds, a row for each number of rows; `*` marks the kernel that is used."""
    return {key: _shape_table(choices, table.times_us.get(key, [])) for key, choices in table.choices.items()}


def _shape_table(choices: list[str], times: list[dict[str, float]]) -> Table:
    names = [name for name in KERNELS if name in choices or any(name in step for step in times)]
    view = plain_table("rows", *(f"{name} µs" for name in names))
    for index, (rows, choice) in enumerate(zip(ROW_STEPS, choices, strict=True)):
        step = times[index] if index < len(times) else {}
        view.add_row(str(rows), *(_cell(step.get(name), name == choice) for name in names))
    return view


def _cell(microseconds: float | None, is_chosen: bool) -> str:
    text = UNKNOWN if microseconds is None else f"{microseconds:,.0f}"
    return f"{text} *" if is_chosen else f"{text}  "
