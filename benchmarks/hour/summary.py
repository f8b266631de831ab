"""The page of targets: met, not met, or not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .parts import RESULTS, Part
from .verdict import Verdict

TARGETS = tuple(f"S{number}" for number in range(1, 11))
RULE = "A target is met when the interval reaches it."
HEAD = ("target", "what", "goal", "measured (95 % interval)", "")


def verdicts_of(part: Part, folder: Path = RESULTS) -> list[Verdict]:
    """From the file of a part; nothing if it is not there."""
    file = folder / part.file
    return part.read(json.loads(file.read_text())) if part.read and file.exists() else []


def page(parts: Sequence[Part], setting: str, outcomes: dict[str, str], folder: Path = RESULTS) -> str:
    """Markdown. `outcomes`: by part, how this run of it went."""
    lines = ["# Targets", "", setting, "", RULE, "", _line(HEAD), _line("---" for _ in HEAD)]
    found = [verdict for part in parts for verdict in verdicts_of(part, folder)]
    for target in TARGETS:
        lines += [_line(verdict.cells) for verdict in found if verdict.target == target] or _unread(
            target, parts, folder
        )
    lines += ["", "| part | command | this run |", "| --- | --- | --- |"]
    lines += [_line((part.name, f"`python {_shown(part)}`", outcomes.get(part.name, "not in it"))) for part in parts]
    return "\n".join(lines) + "\n"


def _unread(target: str, parts: Sequence[Part], folder: Path) -> list[str]:
    """A target without a verdict: shown in a table of its own, or not run."""
    shown = next((part for part in parts if target in part.targets and (folder / part.file).exists()), None)
    if shown and shown.read is None:
        return [_line((target, "shown", "–", f"[{shown.file}]({Path(shown.file).with_suffix('.md')})", "shown"))]
    return [_line((target, "", "–", "–", "not run"))]


def _shown(part: Part) -> str:
    command = [Path(each).name if each.endswith(".py") else each for each in part.command]
    return " ".join(f"benchmarks/{each}" if each.endswith(".py") else each for each in command)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
