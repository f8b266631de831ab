"""The predictor process: forecasts in, plans out; the routing that really happened comes back."""

from __future__ import annotations

import time

from ...ipc.events import Received
from ...ipc.messages import Forecast, Plan, Used
from ...ipc.stage import Stage
from ..checkpoint.survey import Survey
from ..traces.records import TracedPlan, TraceHeader
from ..traces.stream import TraceFile
from .forecaster import make_forecaster, scores


class PredictorShell:
    """One start of the predictor. It decides nothing about slots: a plan is advice (R5)."""

    def __init__(self, stage: Stage) -> None:
        survey = stage.survey(Survey)
        self._stage = stage
        self._forecaster = make_forecaster(stage.config, survey.layers, survey.experts, survey.top_k)
        self._plans = self._learned = 0
        header = TraceHeader.of("predictor", stage.spec.epoch, survey)
        self._trace = TraceFile(stage.config.trace, header) if stage.config.trace else None

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        stage = self._stage
        stage.ready({"predictor": stage.config.predictor})
        while stage.running:
            for event in stage.poll(1000):
                self._take_in(event)
            if stage.publish_due:
                stage.publish(done=self._plans, counters={"plans": self._plans, "learned_tokens": self._learned})
        if self._trace is not None:
            self._trace.close()

    def _take_in(self, event: object) -> None:
        if self._forecaster is None:
            return
        match event:
            case Received("scheduler", Forecast() as coming):
                with self._stage.span("forecast", step=coming.step):
                    plan = Plan(coming.step, scores(self._forecaster.forecast(coming)))
                self._stage.send("loader", plan)
                self._plans += 1
                self._record(plan)
            case Received("loader", Used() as used):
                with self._stage.span("learn", step=used.step):
                    self._forecaster.learn(used)
                self._learned += len(used.token_ids)
            case _:
                pass

    def _record(self, plan: Plan) -> None:
        if self._trace is not None:
            self._trace.write(TracedPlan(step=plan.step, sent_ns=time.monotonic_ns(), scores=plan.scores))
