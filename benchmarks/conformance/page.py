"""The page of results: a row a client, and what did not hold."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .client import Check

HEAD = """\
# Clients that others have written

Each client ran in an environment of its own against `expertflow serve --http` with the built-in model in float32, a
chat template added. *As by openai*: the same text and the same count of tokens as the official client gets. *As by
transformers*: the same score as lm-eval gives with transformers in its own process.
[How to set them up](../how-to/clients.md).
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one client."""

    name: str
    version: str
    checks: list[Check]


def write_page(file: Path, outcomes: list[Outcome]) -> None:
    """Write the page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("starlette", "uvicorn", "transformers"))
    command = shlex.join(["python", "-m", "expertflow.benchmarks.conformance", *sys.argv[1:]])
    ran = f"`{command}` on {datetime.date.today():%d %B %Y}, Python {platform.python_version()}, {packages}."
    rows = ["| client | version | holds | what was checked |", "| --- | --- | --- | --- |"]
    rows += [row(outcome) for outcome in outcomes]
    pairs = [(outcome.name, check) for outcome in outcomes for check in outcome.checks]
    failed = [f"- {name}: {check.what}: {check.seen[:300]}" for name, check in pairs if not check.holds]
    parts = [HEAD, ran, "", *rows]
    if failed:
        parts += ["", "## What does not hold", "", *failed]
    file.write_text("\n".join(parts) + "\n")


def row(outcome: Outcome) -> str:
    """Return the row of a client."""
    holds = sum(check.holds for check in outcome.checks)
    what = "; ".join(check.what for check in outcome.checks)
    return f"| {outcome.name} | {outcome.version} | {holds} of {len(outcome.checks)} | {what} |"
