"""The page of targets: met, not met, or not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .parts import RESULTS, Part
from .verdict import Seen, Verdict

TARGETS = {
    "S1": "all experts in memory, decode: at least as fast as the fastest backend of transformers",
    "S2": "likewise, prefill of 8 prompts of 512 tokens",
    "S3": "experts on disk, 25 and 50 % in memory: a step against the larger of computing and reading what LRU would",
    "S4": "half and a third of the model's size for memory: against accelerate and llama.cpp in as much",
    "S5": "a link on which transfer takes as long as compute: a step against the larger of the two",
    "S6": "all processes against the same compute in one process, everything in memory",
    "S7": "the loader's rate against the best plain direct reads of the same files",
    "S8": "from start to ready, beyond reading what is not experts",
    "S9": "our own cost a token as requests, rows, experts and layers grow",
    "S10": "less and less of the experts in memory: the same tokens; in less than the model takes others are killed",
}
MODELS = (
    "*Model R* has OLMoE's architecture, 16 layers of 64 experts, and random bfloat16 weights, 3.3 GB; *widened* is "
    "the built-in trained model with its experts made 64 times as large, 0.9 GB. What is measured, and how: "
    "[performance.md](../performance.md)."
)
RULE = "A target is met when the 95 % interval of its figure, in brackets, reaches it."
HEAD = ("target", "what", "goal", "measured", "")


def verdicts_of(part: Part, folder: Path = RESULTS) -> list[Verdict | Seen]:
    """From the file of a part; nothing if it is not there."""
    file = folder / part.file
    return list(part.read(json.loads(file.read_text()))) if file.exists() else []


def page(parts: Sequence[Part], setting: str, outcomes: dict[str, str], folder: Path = RESULTS) -> str:
    """Markdown. `outcomes`: by part, how this run of it went."""
    lines = ["# Speed: targets and what was measured", "", setting, "", MODELS, ""]
    lines += [*(f"- **{name}**: {what}" for name, what in TARGETS.items()), "", RULE, ""]
    lines += [_line(HEAD), _line("---" for _ in HEAD)]
    found = [verdict for part in parts for verdict in verdicts_of(part, folder)]
    for target in TARGETS:
        seen = [_line(verdict.cells) for verdict in found if verdict.target == target]
        lines += seen or [_line((target, "", "–", "–", "not run"))]
    lines += ["", "## Parts", "", "| part | command | figures | this run |", "| --- | --- | --- | --- |"]
    lines += [_part_line(part, outcomes, folder) for part in parts]
    return "\n".join(lines) + "\n"


def _part_line(part: Part, outcomes: dict[str, str], folder: Path) -> str:
    files = [name for name in (part.file, str(Path(part.file).with_suffix(".md"))) if (folder / name).exists()]
    figures = f"[{files[-1]}]({files[-1]})" if files else "–"
    return _line((part.name, f"`python {_shown(part)}`", figures, outcomes.get(part.name, "not in it")))


def _shown(part: Part) -> str:
    command = [Path(each).name if each.endswith(".py") else each for each in part.command]
    return " ".join(f"benchmarks/{each}" if each.endswith(".py") else each for each in command)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
