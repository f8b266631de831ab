"""Copies of one model side by side, in words: what each costs, and its size. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from ...configs.sizes import format_size
from ..monitor.tables import plain_table

if TYPE_CHECKING:
    from .comparison import Comparison


class ComparedCopy(NamedTuple):
    """A copy, the bytes of its weights, and how it differs from the original."""

    name: str
    count_bytes: int
    comparison: Comparison


def size_of(folder: Path) -> int:
    """Return the bytes of the weights in a model folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def comparison_words(found: Comparison) -> str:
    """Return the lines for one copy."""
    return (
        f"  perplexity {found.perplexity:.4g} instead of {found.original_perplexity:.4g}\n"
        f"  mean KL divergence {found.mean_kl:.4g} nats; {found.same_top_token:.1%} the same top token\n"
        f"  {found.changed_routes:.1%} of the routes changed"
    )


def copies_table(copies: Sequence[ComparedCopy]) -> Table:
    """Return a table of copies, a row each, and the original's perplexity."""
    table = plain_table("copy", "size", "perplexity", "mean KL", "same top token", "routes changed")
    for copy in copies:
        found = copy.comparison
        figures = (f"{found.perplexity:.4g}", f"{found.mean_kl:.4g}")
        shares = (f"{found.same_top_token:.1%}", f"{found.changed_routes:.1%}")
        table.add_row(copy.name, format_size(copy.count_bytes), *figures, *shares)
    table.add_row("the original", "", f"{copies[0].comparison.original_perplexity:.4g}", "0", "", "")
    return table


def line_words(copies: Sequence[ComparedCopy]) -> str:
    """Return what a straight line between the next smaller and the next larger copy has at the size of the first.

    A mixture must be below it to be worth its bytes: a line is what layers of average cost would bring. Returns an
    empty text if there is no smaller or no larger copy.
    """
    own, others = copies[0], sorted(copies[1:], key=lambda copy: copy.count_bytes)
    below = [copy for copy in others if copy.count_bytes < own.count_bytes]
    above = [copy for copy in others if copy.count_bytes > own.count_bytes]
    if not below or not above:
        return ""
    least, most = below[-1], above[0]
    way = (own.count_bytes - least.count_bytes) / (most.count_bytes - least.count_bytes)
    line_kl = (1 - way) * least.comparison.mean_kl + way * most.comparison.mean_kl
    is_better = own.comparison.mean_kl < line_kl
    verdict = "is better than" if is_better else "does not beat"
    return (
        f"{own.name} {verdict} a straight line between {least.name} and {most.name}, which has a mean KL of "
        f"{line_kl:.4g} at its size"
    )
