"""The predictor process: forecasts in, plans out, single rows foreseen; the routing that really happened comes back."""

from __future__ import annotations

from ...ipc.events import Received
from ...ipc.messages import Forecast, Foresee, Foreseen, Plan, Used
from ...ipc.stage import Stage
from ..checkpoint.survey import Survey
from .forecaster import make_forecaster, scores


class PredictorShell:
    """One start of the predictor. It decides nothing about slots: a plan is advice (R5)."""

    def __init__(self, stage: Stage) -> None:
        survey = stage.survey(Survey)
        self._stage = stage
        self._forecaster = make_forecaster(stage.config, survey.layers, survey.experts, survey.top_k)
        self._plans = self._learned = 0

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        stage = self._stage
        stage.ready({"predictor": stage.config.predictor})
        while stage.running:
            for event in stage.poll(1000):
                self._take_in(event)
            if stage.publish_due:
                stage.publish(done=self._plans, counters={"plans": self._plans, "learned_tokens": self._learned})

    def _take_in(self, event: object) -> None:
        if self._forecaster is None:
            return
        match event:
            case Received("scheduler", Forecast() as coming):
                with self._stage.span("forecast", step=coming.step):
                    plan = Plan(coming.step, scores(self._forecaster.forecast(coming)))
                self._stage.send("loader", plan)
                self._plans += 1
            case Received("scheduler", Foresee() as asked):
                with self._stage.span("foresee", rows=len(asked.rows)):
                    answer = Foreseen(asked.number, asked.rows, scores(self._forecaster.routes(_as_forecast(asked))))
                self._stage.send("scheduler", answer)
            case Received("loader", Used() as used):
                with self._stage.span("learn", step=used.step):
                    self._forecaster.learn(used)
                self._learned += len(used.token_ids)
            case _:
                pass


def _as_forecast(asked: Foresee) -> Forecast:
    return Forecast(step=asked.number, token_ids=asked.token_ids, rows=asked.rows, positions=asked.positions)
