"""`python -m expertflow.workers.gates FOLDER OUT`: train gates on a trace with hidden states."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from ...errors import ExpertFlowError
from .training import train_gates


def main(folder: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Train gates on the trace in FOLDER (made with --hidden) and write them to OUT."""
    try:
        report = train_gates(folder, out)
    except ExpertFlowError as error:
        sys.exit(f"error: {error}")
    shares = " ".join(f"{share:.3f}" for share in report.recall_at_k)
    sys.stdout.write(f"{out}: recall@top-k by layer, {report.held_out_tokens:,} tokens held out: {shares}\n")


if __name__ == "__main__":
    tyro.cli(main)
