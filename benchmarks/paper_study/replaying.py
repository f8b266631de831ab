"""Replay the loader on recorded routing under a virtual clock, with an oracle for one part at a time.

The ledger and the holdings are the real ones; only link, kernels and messages are simulated. So the table shows what a
part of the loader costs without what two busy cores add.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import msgspec
from expertflow.runtime.replay.choices import hint_source, prediction_maker
from expertflow.runtime.replay.experiment import BELADY, Experiment, no_predictions
from expertflow.runtime.replay.machine import Machine
from expertflow.runtime.replay.predictions import PredictionSource
from expertflow.runtime.replay.source import ReplaySource, open_source
from expertflow.runtime.replay.timed import replay_timed
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.policies import Policy, make_policy

from .foresight import EverythingUsed, ForeseenSteps, ForeseenUses
from .systems import CACHE_MOE, SE_MOE

COMPUTE_STEP_NS = 54_000_000
"""Time of computing a step of the widened model at batch 8 on two cores (docs/studies/paper.md)."""
EXPERTS_PART = 0.7
EXPERT_BYTES = 4_700_000
MESSAGE_NS = 150_000
READERS = 2
HINTS = "0.85,0.85"
FORECAST_MS = 2.0


class Row(TypedDict):
    """One loader on one trace; times are of a step."""

    loader: str
    batch: int
    link: float
    slots: int
    step_ms: float
    loads_a_step: float
    hit_ratio: float
    step_of_bound: float
    over_cache_moe: float
    over_se_moe: float


class Setting:
    """A trace replayed at a batch, over a link of a share of what on demand needs."""

    def __init__(self, trace: Path, predictor: Path, batch: int, link: float, slots_share: float, tokens: int) -> None:
        self.source: ReplaySource = open_source(trace, batch, tokens)
        self._predictor, self.batch, self.link = predictor, batch, link
        program = self.source.program
        self.slots = round(slots_share * program.layers * program.experts)
        union = float(self.source.unions.mean())
        self.load_ns = COMPUTE_STEP_NS / program.layers / union / link
        self.machine = Machine(
            expert_bytes=EXPERT_BYTES,
            link_bytes_per_s=EXPERT_BYTES * 1e9 / self.load_ns,
            readers=READERS,
            layer_ns=round(COMPUTE_STEP_NS / program.layers * (1 - EXPERTS_PART)),
            expert_ns=round(COMPUTE_STEP_NS / program.layers * EXPERTS_PART / union),
            message_ns=MESSAGE_NS,
            decide_ns=MESSAGE_NS,
        )

    def row(self, policy: str, predictions: PredictionSource | None, **options: object) -> Row:
        """Replay one loader. `options`: hints (recall and precision), copies (of a load), and those of Ledger."""
        program, hints, copies = self.source.program, str(options.pop("hints", "")), options.pop("copies", 1)
        assert isinstance(copies, int)
        shape = program.layers, program.experts, program.top_k
        ledger = Ledger(self.slots, *shape, self.policy(policy), fills_in_flight=2 * READERS, **options)  # pyright: ignore[reportArgumentType]
        machine = msgspec.structs.replace(self.machine, link_bytes_per_s=self.machine.link_bytes_per_s / copies)
        hinted = hint_source(hints, self.source, 0)
        outcome = replay_timed(program, ledger, self.slots, machine, hints=hinted, predictions=predictions)
        step_ns, loads = outcome.total_ns / outcome.steps, outcome.ledger.loads / outcome.steps
        return Row(
            loader="", batch=self.batch, link=self.link, slots=self.slots, step_ms=round(step_ns / 1e6, 2),
            loads_a_step=round(loads, 1), hit_ratio=round(outcome.hit_rate, 3),
            step_of_bound=round(step_ns / max(COMPUTE_STEP_NS, loads * copies * self.load_ns), 3),
            over_cache_moe=0.0, over_se_moe=0.0,
        )  # fmt: skip

    def policy(self, name: str) -> Policy:
        """Return a fresh policy by its name; `belady` knows the future."""
        if name == BELADY:
            return ForeseenUses(self.source.uses)
        program = self.source.program
        return make_policy(name, program.layers, program.experts, program.top_k)

    def path(self) -> PredictionSource | None:
        """Return the predictions of the shipped predictor."""
        return prediction_maker("path", str(self._predictor), FORECAST_MS, self.source)()

    def foreseen(self, ahead: int) -> PredictionSource:
        """Return true predictions of the step that begins and of `ahead` more."""
        return ForeseenSteps(self.source.program, ahead)

    def everything(self) -> PredictionSource:
        """Return predictions that every expert is used."""
        return EverythingUsed(self.source.program)

    def belady_loads(self) -> float:
        """Return the loads a step of the bound that knows the future and needs no slot for what is under way."""
        row = Experiment(source=self.source, sharing="pool").run(BELADY, self.slots)
        return (row.loads or 0) / self.source.program.steps


def ablate(setting: Setting) -> Iterator[Row]:
    """Yield a row a loader: baselines, ExpertFlow as shipped, and with an oracle for one part at a time."""
    rows = {name: run() for name, run in _loaders(setting).items()}
    for name, row in rows.items():
        row["loader"] = name
        row["over_cache_moe"] = round(rows[CACHE_MOE]["step_ms"] / row["step_ms"], 3)
        row["over_se_moe"] = round(rows[SE_MOE]["step_ms"] / row["step_ms"], 3)
        yield row


def _loaders(setting: Setting) -> dict[str, Callable[[], Row]]:
    def loader(policy: str, predictions: Callable[[], PredictionSource | None], **options: object) -> Callable[[], Row]:
        return lambda: setting.row(policy, predictions(), **options)

    default, path = "popularity", setting.path
    return {
        CACHE_MOE: loader("lru", no_predictions, by_layer=True),
        "Cache-MoE that copies victims back": loader("lru", no_predictions, by_layer=True, copies=2),
        SE_MOE: loader("ring", setting.everything, whole_layers=True, rank_victims="always", uncalibrated=True),
        "on demand": loader("lru", no_predictions),
        "nothing predicted": loader(default, no_predictions),
        "as shipped": loader(default, path, hints=HINTS),
        "LRU victims": loader("lru", path, hints=HINTS, rank_victims="never"),
        "slots per layer": loader(default, path, hints=HINTS, by_layer=True),
        "oracle for hints": loader(default, path, hints="1,1"),
        "oracle for the forecast": loader(default, lambda: setting.foreseen(0)),
        "oracle for the victims": loader(BELADY, path, hints=HINTS, rank_victims="never"),
        "oracle one step further": loader(default, lambda: setting.foreseen(1)),
        "oracle one step further, and for the victims": loader(BELADY, lambda: setting.foreseen(1)),
    }


def recorded_trace(model: Path, text: str, folder: Path) -> Path:
    """Return a trace of how `model` routes `text`, in pieces of 128 tokens; made in `folder` at the first call."""
    trace = folder / "trace"
    if not (trace / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(text)
        asked = ["trace", str(trace), "--model", str(model), "--text", str(folder / "text.txt")]
        asked += ["--text-tokens", "128", "--expert-memory", "100%"]
        subprocess.run([sys.executable, "-P", "-m", "expertflow", *asked], stdout=sys.stderr, check=True)
        (trace / "done").touch()
    return trace
