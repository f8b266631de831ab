"""Decode and prefill of ExpertFlow (all experts; 25 % from disk) against resident transformers, in one run.

python benchmarks/step_times.py --model widened --batches 1 8 32 --out docs/results/step-times-widened.json
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from contenders import Figures, as_row, measure_expertflow, measure_transformers
from models import model_r, widened
from rich.console import Console
from rich.table import Table

BACKENDS = ("eager", "grouped_mm")
LONG_PROMPT = 512
PROMPT = 32


def main() -> None:
    arguments = _arguments()
    folder = model_r() if arguments.model == "r" else widened()
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rows = [
        row
        for batch in arguments.batches
        for row in measure(folder, vocabulary, batch, arguments.steps, arguments.shares)
    ]
    _show(arguments.model, rows)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps([as_row(row) for row in rows], indent=1))


def measure(folder: Path, vocabulary: int, batch: int, steps: int, shares: list[str]) -> list[Figures]:
    """All contenders at one batch size, the same tokens for all."""
    rng = random.Random(batch)
    prompts = [[rng.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(batch)]
    long = [rng.randrange(3, vocabulary) for _ in range(LONG_PROMPT)]
    ours = [
        measure_expertflow(f"expertflow {share}", folder, prompts, steps, long, expert_memory=share) for share in shares
    ]
    return [*ours, *(measure_transformers(backend, folder, ours[0], prompts, long) for backend in BACKENDS)]


def _show(model: str, rows: list[Figures]) -> None:
    table = Table(title=f"model {model}: a decode step, and prefill of {LONG_PROMPT} tokens")
    for name in (
        "contender",
        "batch",
        "ms a step",
        "to the best resident",
        "prefill tokens/s",
        "PSS peak MB",
        "hits",
        "loads a step",
        "stalled",
    ):
        table.add_column(name, justify="right" if name != "contender" else "left")
    for row in rows:
        best = min(
            other.decode_ms for other in rows if other.batch == row.batch and other.contender.startswith("transformers")
        )
        table.add_row(
            row.contender, str(row.batch), f"{row.decode_ms:.1f}", f"{row.decode_ms / best:.2f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.pss_peak_bytes / 1e6:.0f}", _share(row.hit_share), "" if row.loads_per_step is None else
            f"{row.loads_per_step:.1f}",
            _share(row.stall_share),
        )  # fmt: skip
    Console(width=150).print(table)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=("r", "widened"), default="widened", help="r: random OLMoE of 3.3 GB")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=40, help="tokens generated for each prompt")
    parser.add_argument("--shares", nargs="+", default=["100%", "25%"], help="expert memory of ExpertFlow's runs")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
