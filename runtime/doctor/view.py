"""The findings of `expertflow doctor` as a table and a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from .checks import Finding, worst

STYLES = {"ok": "green", "warning": "yellow", "unfit": "bold red"}


def findings_view(findings: Sequence[Finding]) -> Table:
    """Return a table with a row a finding, and what to do below those that are not ok."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.name, Text(finding.verdict, STYLES[finding.verdict]), Text(finding.what))
        if finding.cure:
            table.add_row("", "", Text(f"to do: {finding.cure}"))
    return table


def summary(findings: Sequence[Finding]) -> str:
    """Return a sentence on the whole: whether a model can run here, and what stands in its way."""
    names = {verdict: ", ".join(each.name for each in findings if each.verdict == verdict) for verdict in STYLES}
    match worst(findings):
        case "unfit":
            return f"unfit: {names['unfit']}"
        case "warning":
            return f"fit, with warnings: {names['warning']}"
        case _:
            return "fit"
