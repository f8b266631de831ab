"""What routing costs behind a link: the loader's own ledger replays the recorded choices with a quarter of the slots.

Kernels, link and messages are simulated under a virtual clock (docs/replay.md), the same for every kind of routing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from expertflow.ipc.messages import StepPrediction, StepRouting
from expertflow.runtime.replay.machine import Machine
from expertflow.runtime.replay.predictions import PredictionSource
from expertflow.runtime.replay.steps import Program
from expertflow.runtime.replay.timed import TimedOutcome, replay_timed
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.policies import make_policy
from expertflow.workers.traces.trace import Trace

from .specialisation import BUDGET, RoutingTrace, modality_counts

UNIT_ROWS = 8
MACHINE = Machine(expert_bytes=1_000_000, link_bytes_per_s=4e9, layer_ns=300_000, expert_ns=100_000, message_ns=50_000)
"""A load takes 0.25 ms: soft routing's loads on demand take about twice as long as its computing."""
CERTAIN = 255
TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class UnitSteps:
    """The steps of units that follow one another: each reads its images in one step, then decodes its text."""

    program: Program
    modality: np.ndarray
    """int64 [steps]: TEXT or IMAGE."""
    text_tokens: int

    @classmethod
    def of(cls, trace: RoutingTrace, rows: int = UNIT_ROWS) -> UnitSteps:
        """Cut the rows of a trace into units of `rows`."""
        layers, count, _, top_k = trace.chosen.shape
        images = torch.nonzero(trace.of_images).flatten()
        texts = torch.nonzero(~trace.of_images).flatten()[2:]  # the first two stand before the image
        order = torch.cat([images, texts])
        step_of_token = np.concatenate([np.zeros(len(images), np.int64), 1 + np.arange(len(texts))])
        units = np.arange(count) // rows
        steps = (units[:, None] * (len(texts) + 1) + step_of_token[None, :]).ravel()
        routes = trace.chosen[:, :, order].permute(1, 2, 0, 3).reshape(-1, layers, top_k)
        offsets = np.arange(count + 1) * len(order)
        numbers, unnamed = routes.numpy().astype(np.uint16), np.zeros(len(steps), np.int64)
        made = Trace(routes=numbers, token_ids=unnamed, offsets=offsets, expert_count=trace.experts)
        modality = np.where(np.arange(int(steps.max()) + 1) % (len(texts) + 1) == 0, IMAGE, TEXT)
        return cls(Program(made, steps), modality, count * len(texts))


class ModalityForecast:
    """Predictions that a step uses the experts of its modality, as often as that modality does."""

    def __init__(self, steps: UnitSteps, shares: torch.Tensor) -> None:
        """`shares`: float [layers, modalities, experts], as from `modality_counts`."""
        chosen = UNIT_ROWS * steps.program.top_k
        chances = 1 - (1 - shares.numpy()) ** chosen
        self._modality = steps.modality
        self._scores = [np.rint(CERTAIN * chances[:, kind]).astype(np.uint8).tobytes() for kind in (TEXT, IMAGE)]

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        """Return the prediction of this step, without delay."""
        return [(0, StepPrediction(step, self._scores[int(self._modality[step])]))]

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing: what a modality uses was measured before."""


def stall_facts(trace: RoutingTrace) -> dict[str, Any]:
    """Return by loader the stall in milliseconds and the loads, a token of text; nothing for a dense model.

    lru: the least recently used expert of all layers goes. usage: the loader's own policy. bins: the same, told with
    each step which experts its modality uses.
    """
    if trace.experts == 1:
        return {}
    steps, shares = UnitSteps.of(trace), modality_counts(trace)
    loaders: dict[str, Callable[[], TimedOutcome]] = {
        "lru": lambda: _replay(steps, "lru", None),
        "usage": lambda: _replay(steps, "popularity", None),
        "bins": lambda: _replay(steps, "popularity", ModalityForecast(steps, shares)),
    }
    return {name: _figures(run(), steps.text_tokens) for name, run in loaders.items()}


def _replay(steps: UnitSteps, policy: str, predictions: PredictionSource | None) -> TimedOutcome:
    program = steps.program
    shape = program.layers, program.experts, program.top_k
    slots = round(BUDGET * program.layers * program.experts)
    ledger = Ledger(slots, *shape, make_policy(policy, *shape))
    return replay_timed(program, ledger, slots, MACHINE, predictions=predictions)


def _figures(outcome: TimedOutcome, tokens: int) -> dict[str, float]:
    return {"stall_ms": outcome.stall_ns / 1e6 / tokens, "loads": outcome.ledger.loads / tokens}
