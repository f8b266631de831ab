"""The predictor process: forecasts in, plans out, single rows foreseen; the routing that really happened comes back."""

from __future__ import annotations

import time

from ...ipc.messages import PredictRows, PredictStep, RowPredictions, StepPrediction, StepRouting
from ...ipc.stage.events import Received
from ...ipc.stage.stage import Stage
from ..checkpoint.survey import Survey
from ..traces.records import TracedPlan, TraceHeader
from ..traces.stream import TraceFile
from .base.forecaster import Forecaster, scores
from .base.model_shape import ModelShape
from .events import Learn, PredictorAction, RunRowPrediction
from .registry import chosen_predictor, make_forecaster
from .state import PredictorState


class PredictorShell:
    """One start of the predictor. It decides nothing about slots: a plan is advice (R5)."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        survey = stage.survey(Survey)
        subject = ModelShape.of(survey)
        self._name = chosen_predictor(stage.config, subject)
        self._forecaster = make_forecaster(stage.config, subject)
        self._state = PredictorState(waits=self._forecaster is not None and self._forecaster.follows_rows)
        self._plans = self._learned = 0
        self._trace: TraceFile | None = None
        if stage.config.trace:
            self._trace = TraceFile(stage.config.trace, TraceHeader.of("predictor", stage.spec.epoch, survey))

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        stage = self._stage
        stage.ready({"predictor": self._name})
        while stage.running:
            self.receive([event.message for event in stage.poll(1000) if isinstance(event, Received)])
            if stage.publish_due:
                stage.publish(done=self._plans, queue=self._state.waiting, counters=self._counters())
        if self._trace is not None:
            self._trace.close()

    def receive(self, heard: list[object]) -> None:
        """All that has come is heard first, so that no forecast is made of a step that has run already."""
        if self._forecaster is not None:
            self._serve(self._forecaster, self._decide(heard))

    def _decide(self, heard: list[object]) -> list[PredictorAction]:
        events = [message for message in heard if isinstance(message, PredictStep | PredictRows | StepRouting)]
        return [action for event in events for action in self._state.handle(event)]

    def _serve(self, forecaster: Forecaster, actions: list[PredictorAction]) -> None:
        for action in actions:
            if isinstance(action, Learn):
                with self._stage.span("learn", step=action.used.step):
                    forecaster.learn(action.used)
                self._learned += len(action.used.token_ids)
            elif isinstance(action, RunRowPrediction):
                self._foretell(forecaster, action.asked)
            elif self._state.still_useful(action.coming):
                self._plan(forecaster, action.coming)

    def _plan(self, forecaster: Forecaster, coming: PredictStep) -> None:
        with self._stage.span("forecast", step=coming.step):
            plan = StepPrediction(coming.step, scores(forecaster.forecast(coming)))
        self._stage.send("loader", plan)
        self._plans += 1
        if self._trace is not None:
            self._trace.write(TracedPlan(step=plan.step, sent_ns=time.monotonic_ns(), scores=plan.scores))

    def _foretell(self, forecaster: Forecaster, asked: PredictRows) -> None:
        coming = PredictStep(step=0, token_ids=asked.token_ids, rows=asked.rows, positions=asked.positions)
        with self._stage.span("foresee", rows=len(asked.rows)):
            answer = RowPredictions(asked.number, asked.rows, scores(forecaster.routes(coming)))
        self._stage.send("scheduler", answer)

    def _counters(self) -> dict[str, int | float]:
        return {"plans": self._plans, "learned_tokens": self._learned, "dropped_forecasts": self._state.dropped}
