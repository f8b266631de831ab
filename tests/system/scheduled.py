"""The scheduler's core over a real model in one process: what it orders is run, and can be run again elsewhere."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
import numpy as np
from expertflow.ipc.messages import Finished, PredictRows, PredictStep, RowPredictions, RunStep, StepRouting, Submit
from expertflow.ipc.messages.to_compute import ComputeFromScheduler
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.predictor.base.forecaster import Forecaster, scores
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ModelInfo, SchedulerLimits
from expertflow.workers.scheduler.state import SchedulerState

STEP_NS = 1_000_000


def facts_of(survey: Survey) -> ModelInfo:
    return ModelInfo(
        model="", vocabulary=survey.vocabulary, context=survey.context, eos_ids=[], layers=survey.layers,
        experts=survey.experts, kv_bytes_per_position=1,
    )  # fmt: skip


@dataclass
class Scheduled:
    """Requests through the core, steps through a runtime. Time is made up: every step takes a millisecond, and moving
    rows takes none of it, so that grouping never seems too dear."""

    runtime: LocalRuntime
    forecaster: Forecaster
    core: SchedulerState
    orders: list[ComputeFromScheduler] = field(default_factory=list)
    ended: dict[str, list[int]] = field(default_factory=dict)
    _waiting: deque[ComputeFromScheduler] = field(default_factory=deque)
    _forecasts: dict[int, PredictStep] = field(default_factory=dict)
    has_encoder: bool = False
    _now_ns: int = 0

    @classmethod
    def of(
        cls,
        runtime: LocalRuntime,
        forecaster: Forecaster,
        survey: Survey,
        limits: SchedulerLimits,
        facts: ModelInfo | None = None,
    ) -> Scheduled:
        """`facts`: what the scheduler knows of the model; without them it knows no end of text and no settings."""
        engine = cls(runtime, forecaster, SchedulerState(facts or facts_of(survey), limits))
        engine.has_encoder = survey.encoder_layers > 0
        engine._do(events.ComputeJoined(0, {"kv_bytes_per_position": 1}))
        return engine

    def run(
        self, prompts: list[list[int]], tokens: list[int], delivered: list[list[int]] | None = None
    ) -> list[list[int]]:
        """The outputs of these prompts, so many tokens each, in their order; `delivered` of them are there already."""
        before = delivered or [[]] * len(prompts)
        for number, (prompt, count, resumed) in enumerate(zip(prompts, tokens, before, strict=True)):
            submit = Submit(request_id=str(number), prompt_ids=prompt, max_new_tokens=count, resume_ids=resumed)
            self._do(events.ClientMessage(b"client", submit, self._now_ns))
        while len(self.ended) < len(prompts):
            self._now_ns += STEP_NS
            self._do(events.Tick(self._now_ns))
            self._run_next()
        return [self.ended[str(number)] for number in range(len(prompts))]

    def _run_next(self) -> None:
        while self._waiting:
            order = self._waiting.popleft()
            self.orders.append(order)
            if isinstance(order, RunStep):
                stepped, used = self.runtime.run(order, self._forecasts.get(order.number))
                assert used is not None and (self.has_encoder or stepped.experts == _distinct(used))
                assert stepped.busy_ns > 0 and (stepped.moved_ns > 0 or not order.join)
                stepped = msgspec.structs.replace(stepped, busy_ns=STEP_NS, moved_ns=0)
                self.forecaster.learn(used)
                return self._do(events.StepDone(stepped, self._now_ns))
            self.runtime.order(order)
        return None

    def _do(self, event: events.SchedulerEvent) -> None:
        for action in self.core.handle(event):
            match action:
                case events.Send(_, Finished() as end):
                    self.ended[end.request_id] = end.token_ids
                case events.ToPredictor(PredictStep() as forecast):
                    self._forecasts[forecast.step] = forecast
                case events.ToPredictor(PredictRows() as question):
                    self._answer(question)
                case events.ToCompute(order):
                    self._waiting.append(order)
                case _:
                    pass

    def _answer(self, question: PredictRows) -> None:
        coming = PredictStep(
            step=question.number, token_ids=question.token_ids, rows=question.rows, positions=question.positions
        )
        answer = RowPredictions(question.number, question.rows, scores(self.forecaster.forecast_tokens(coming)))
        self._do(events.RowPredictionsReady(answer))


def run_again(runtime: LocalRuntime, orders: list[ComputeFromScheduler]) -> None:
    """The same orders on another runtime."""
    for order in orders:
        if isinstance(order, RunStep):
            runtime.run(order)
        else:
            runtime.order(order)


def _distinct(used: StepRouting) -> int:
    """Experts that a step used, layer by layer."""
    chosen = np.frombuffer(used.experts, dtype="<u2").reshape(len(used.token_ids), -1, used.top_k)
    return sum(len(np.unique(chosen[:, layer])) for layer in range(chosen.shape[1]))
