"""Draw every picture of the committed results again:

python -m expertflow.benchmarks.plots     all of docs/results, and docs/images/tokens-per-second.png for the README

All pictures have an opaque white background, lines over memory or load where there are such, and axes with units.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .comparison import draw_comparison, draw_tokens_per_second
from .experiments import draw_experiments, draw_replay
from .growth import draw_growth

DOCS = Path(__file__).parents[2] / "docs"


def redraw(docs: Path) -> None:
    """Draw every picture of docs/results from the figures beside it, and the chart of the README."""
    results = docs / "results"
    rows = {name: _read(results / f"{name}.json")["rows"] for name in ("under-limit", "residency", "matrix")}
    draw_tokens_per_second(rows["under-limit"], rows["residency"], docs / "images" / "tokens-per-second.png")
    for name, each in rows.items():
        draw_comparison(each, results / f"{name}.png")
    draw_growth(_read(results / "growth.json"), results / "growth.png")
    experiments = results / "experiments"
    sizes = experiments / "sizes.json"
    more = _read(sizes)["rows"] if sizes.exists() else []
    draw_experiments(_read(experiments / "results.json")["rows"], experiments, more)
    for file in experiments.glob("replay-*.json"):
        draw_replay(_read(file)["rows"], file.with_suffix(".png"))


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder with results/ and images/")
    redraw(parser.parse_args().docs)


if __name__ == "__main__":
    main()
