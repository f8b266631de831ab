"""Time what a start spends on measuring which product is fastest: the first start of a user, and later ones (K5).

python -m expertflow.benchmarks.measuring --out docs/results/measuring.json

A first start has an empty cache of its own; the later ones find what it has kept there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from expertflow import Client, Config, Supervisor

from .contenders.base import Missing
from .models import folder_of
from .report import show_table, write_json

FACT = "kernels_s"
"""Fact of compute: seconds that its start spent on measuring or on reading what was measured."""
FIRST, LATER = "first", "later"
CACHE = "XDG_CACHE_HOME"


def measure(folder: Path, firsts: int, later: int) -> list[dict[str, Any]]:
    """Return a row a start: which one it is, and its seconds. Raises Missing if the engine does not report any."""
    rows = []
    for _ in range(firsts):
        with empty_cache():
            starts = [FIRST, *[LATER] * later]
            rows += [{"start": start, "measuring_s": measuring_s(folder)} for start in starts]
    return rows


def measuring_s(folder: Path) -> float:
    """Start an engine and return what it reports. Raises Missing if it reports nothing."""
    config = Config.load("cpu-disk", model=str(folder))
    with Supervisor(config) as engine, Client(engine.address) as client:
        facts = client.stats().facts["compute"]
    if FACT not in facts:
        raise Missing(f"compute reports no {FACT}: this ExpertFlow measures no products")
    return float(facts[FACT])


@contextmanager
def empty_cache() -> Iterator[None]:
    """Let whatever starts meanwhile keep its cache in an empty folder."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("r", "widened"), default="r")
    parser.add_argument("--firsts", type=int, default=3, help="first starts")
    parser.add_argument("--later", type=int, default=2, help="starts after each of them")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    try:
        rows = measure(folder_of(arguments.model), arguments.firsts, arguments.later)
    except Missing as reason:
        sys.exit(f"Missing: {reason}")
    _show(rows)
    write_json(arguments.out, rows)


def _show(rows: list[dict[str, Any]]) -> None:
    seconds = {start: [row["measuring_s"] for row in rows if row["start"] == start] for start in (FIRST, LATER)}
    shown = [
        {"start": start, "seconds": f"{median(each):.3f}", "most": f"{max(each):.3f}", "starts": len(each)}
        for start, each in seconds.items()
        if each
    ]
    show_table("measuring which product is fastest (median)", shown)


if __name__ == "__main__":
    main()
