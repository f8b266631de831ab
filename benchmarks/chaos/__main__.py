"""Kill, hang and starve workers of an engine under load, for half an hour, and compare every output with a quiet run.

python -m expertflow.benchmarks.chaos --minutes 30 --requests 1000 --seed 0 --out docs/results/chaos.json

Each round starts `expertflow serve --http` in one of several settings and sends the same requests by the blocking
client, the asyncio client, and over HTTP with streams and without. Every few seconds a fault falls on random workers.
Rounds go on until both the minutes (of rounds with faults) and the requests are reached. Each request must have exactly
one end and the quiet run's tokens; afterwards no process, run directory or shared memory may be left. The seed decides
requests and faults; when they fall depends on the machine. The built-in model runs in float32, or batch-invariant in
bfloat16: elsewhere bits may depend on which rows share a step.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from ..models import EXAMPLES
from ..report import show_table, write_json
from .engine_process import EngineProcess
from .judging import Output
from .requests import draw_requests
from .rounds import Limits, RoundResult, Setting, log_of, run_quiet, run_round, summary

VOCABULARY = 2048
"""Ids of the built-in model."""
COMMON = ("--model", str(EXAMPLES / "model"), "--expert-memory", "25%", "--batch-size", "8", "--restart-limit", "10000")
PLAIN, INVARIANT = ("--dtype", "float32"), ("--batch-invariant",)
SETTINGS = (
    Setting("disk, float32, spare compute", "float32", (*PLAIN, "--tier", "disk", "--spare-compute")),
    Setting("host, batch-invariant", "batch-invariant", (*INVARIANT, "--tier", "host", "--spare-compute")),
    Setting("host, float32, two units", "float32", (*PLAIN, "--tier", "host", "--units", "two")),
    Setting("disk, batch-invariant", "batch-invariant", (*INVARIANT, "--tier", "disk", "--spare-compute")),
)
ABRUPT_EVERY = 4
"""Of so many rounds one ends with SIGKILL of the supervisor instead of SIGTERM."""


def main() -> None:
    arguments = make_parser().parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = Path(tempfile.mkdtemp(prefix="efc", dir="/tmp"))
    try:
        results = Chaos(arguments, base).run()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    sys.exit(1 if results["faults"] else 0)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="time with faults, at least")
    parser.add_argument("--requests", type=int, default=1000, help="requests with faults, at least")
    parser.add_argument("--round", type=int, default=100, help="requests of a round")
    parser.add_argument("--tokens", type=int, default=32, help="longest output")
    parser.add_argument("--faults", type=int, default=10**6, help="faults of a round, at most")
    parser.add_argument("--compute-share", type=float, default=0.25, help="share of the faults that fall on compute")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="settings that take turns, the first ones")
    parser.add_argument("--hang-timeout-s", type=float, default=8.0, help="patience of the watchdog")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="keep the logs of the engines in this folder")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser


class Chaos:
    """The rounds of one seed."""

    def __init__(self, arguments: argparse.Namespace, base: Path) -> None:
        self._arguments, self._base = arguments, base
        self._logs: Path = arguments.logs or base
        self._logs.mkdir(parents=True, exist_ok=True)
        self._console = Console(width=150)
        self._requests = draw_requests(arguments.seed, arguments.round, VOCABULARY, arguments.tokens)
        self._quiet: dict[str, dict[int, Output]] = {}
        self._done: list[RoundResult] = []
        self._faults: list[tuple[str, str]] = []

    def run(self) -> dict[str, Any]:
        """Run rounds until time and requests are reached; show and return what was counted."""
        self._console.print(f"seed {self._arguments.seed}")
        for number in count():
            if self._is_enough():
                break
            self._round(number, SETTINGS[number % self._arguments.settings])
            write_json(self._arguments.out, self._results())
        results = self._results()
        shown = {key: value for key, value in results.items() if key not in ("rounds", "faults")}
        show_table("chaos", [{"figure": key, "value": value} for key, value in shown.items()])
        return results

    def _is_enough(self) -> bool:
        seconds = sum(each.seconds for each in self._done)
        requests = sum(each.requests for each in self._done)
        return seconds >= 60 * self._arguments.minutes and requests >= self._arguments.requests

    def _round(self, number: int, setting: Setting) -> None:
        quiet = self._quiet_of(setting)
        rng = random.Random(f"round {self._arguments.seed} {number}")
        engine = self._start(setting, f"round-{number}")
        try:
            limits = Limits(self._arguments.faults, self._arguments.compute_share)
            done = run_round(engine, self._requests, quiet, rng, limits)
        except BaseException:
            self._console.print(engine.log_tail(60), markup=False)
            engine.kill_all()
            raise
        left = engine.stop(abruptly=number % ABRUPT_EVERY == ABRUPT_EVERY - 1)
        self._note(number, setting, done, [("left", what) for what in left])

    def _note(self, number: int, setting: Setting, done: RoundResult, left: list[tuple[str, str]]) -> None:
        self._done.append(done)
        self._faults += [*done.faults, *left]
        ready = [each.ready_s for each in done.struck if each.ready_s is not None]
        self._console.print(
            f"round {number} ({setting.name}, seed {self._arguments.seed}): {done.requests} requests in "
            f"{done.seconds:.0f} s, {len(done.struck)} faults, {done.restarts} restarts, ready again after "
            f"{summary(ready)} (median / 95 % / most)"
        )
        for kind, what in [*done.faults, *left]:
            self._console.print(f"  {kind}: {what}", markup=False)

    def _quiet_of(self, setting: Setting) -> dict[int, Output]:
        if setting.numerics not in self._quiet:
            engine = self._start(setting, f"quiet-{len(self._quiet)}")
            try:
                self._quiet[setting.numerics] = run_quiet(engine, self._requests, random.Random(0))
            finally:
                self._faults += [("left", f"quiet run: {what}") for what in engine.stop()]
        return self._quiet[setting.numerics]

    def _start(self, setting: Setting, name: str) -> EngineProcess:
        patience = ("--hang-timeout-s", str(self._arguments.hang_timeout_s), "--start-timeout-s", "120")
        return EngineProcess([*COMMON, *setting.words, *patience], self._base, log_of(self._logs, name))

    def _results(self) -> dict[str, Any]:
        struck = [each for done in self._done for each in done.struck]
        kinds, done_kinds = Counter(kind for kind, _ in self._faults), Counter(each.fault.kind for each in struck)
        return {
            "seed": self._arguments.seed,
            "minutes with faults": round(sum(done.seconds for done in self._done) / 60, 1),
            "rounds": [_round_figures(done) for done in self._done],
            "requests": sum(done.requests for done in self._done),
            "faults done": len(struck),
            **{f"faults done: {kind}": number for kind, number in sorted(done_kinds.items())},
            "restarts": sum(done.restarts for done in self._done),
            "tokens sent again": sum(done.repeated for done in self._done),
            **{kind: kinds[kind] for kind in ("lost", "doubled", "different", "failed", "left")},
            "ready again (median / 95 % / most)": summary([s.ready_s for s in struck if s.ready_s is not None]),
            "no token (median / 95 % / most)": summary([gap for done in self._done for gap in done.pauses_s]),
            "faults": [f"{kind}: {what}" for kind, what in self._faults],
        }


def _round_figures(done: RoundResult) -> dict[str, Any]:
    struck = [
        {"kind": each.fault.kind, "stages": each.fault.stages, "ready again, s": each.ready_s} for each in done.struck
    ]
    return {"requests": done.requests, "seconds": round(done.seconds, 1), "restarts": done.restarts, "struck": struck}


if __name__ == "__main__":
    main()
