"""The predictor process: answers prediction requests, and learns from the routing that really happened."""

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
from .registry import choose_predictor, make_forecaster
from .state import Learn, PredictorAction, PredictorState, RunRowPrediction


class PredictorShell:
    """Runs one start of the predictor. It decides nothing about slots: a prediction is advice (R5)."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        survey = stage.survey(Survey)
        shape = ModelShape.of(survey)
        self._name = choose_predictor(stage.config, shape)
        self._forecaster = make_forecaster(stage.config, shape)
        self._state = PredictorState(waits=self._forecaster is not None and self._forecaster.follows_rows)
        self._predicted_steps = self._learned_tokens = 0
        self._trace: TraceFile | None = None
        if stage.config.trace:
            self._trace = TraceFile(stage.config.trace, TraceHeader.of("predictor", stage.spec.epoch, survey))

    def run(self) -> None:
        """Serve until the supervisor stops the stage."""
        stage = self._stage
        stage.ready({"predictor": self._name})
        while stage.running:
            self.receive([event.message for event in stage.poll(1000) if isinstance(event, Received)])
            if stage.publish_due:
                stage.publish(done=self._predicted_steps, queue=self._state.waiting, counters=self._counters())
        if self._trace is not None:
            self._trace.close()

    def receive(self, messages: list[object]) -> None:
        """Handle all messages before the first prediction, so that none is made for a step that has run already."""
        if self._forecaster is not None:
            self._serve(self._forecaster, self._decide(messages))

    def _decide(self, messages: list[object]) -> list[PredictorAction]:
        events = [message for message in messages if isinstance(message, PredictStep | PredictRows | StepRouting)]
        return [action for event in events for action in self._state.handle(event)]

    def _serve(self, forecaster: Forecaster, actions: list[PredictorAction]) -> None:
        for action in actions:
            if isinstance(action, Learn):
                with self._stage.span("learn", step=action.routing.step):
                    forecaster.learn(action.routing)
                self._learned_tokens += len(action.routing.token_ids)
            elif isinstance(action, RunRowPrediction):
                self._predict_rows(forecaster, action.request)
            elif self._state.still_useful(action.request):
                self._predict_step(forecaster, action.request)

    def _predict_step(self, forecaster: Forecaster, request: PredictStep) -> None:
        with self._stage.span("forecast", step=request.step):
            prediction = StepPrediction(request.step, scores(forecaster.forecast(request)))
        self._stage.send("loader", prediction)
        self._predicted_steps += 1
        if self._trace is not None:
            sent_ns = time.monotonic_ns()
            self._trace.write(TracedPlan(step=prediction.step, sent_ns=sent_ns, scores=prediction.scores))

    def _predict_rows(self, forecaster: Forecaster, request: PredictRows) -> None:
        tokens = PredictStep(step=0, token_ids=request.token_ids, rows=request.rows, positions=request.positions)
        with self._stage.span("predict rows", rows=len(request.rows)):
            answer = RowPredictions(request.number, request.rows, scores(forecaster.forecast_tokens(tokens)))
        self._stage.send("scheduler", answer)

    def _counters(self) -> dict[str, int | float]:
        return {
            "plans": self._predicted_steps,
            "learned_tokens": self._learned_tokens,
            "dropped_forecasts": self._state.dropped,
        }
