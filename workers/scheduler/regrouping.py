"""Exchange of rows between units after a round of decode steps, where the saved experts are worth more than the move.

A round is one step of every unit. At its end no unit is in flight, and all next tokens are known. Predictions of their
routes were requested as the steps ended. A round without all answers in time exchanges nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np

from ...ipc.messages import RowPredictions, Stepped
from .events import SchedulerAction, ToPredictor
from .grouping.clustering import kmeans
from .grouping.objective import count_activated
from .grouping.swapping import swap
from .limits import ComputeInfo
from .mode_tuner import Mode
from .requests import RequestState
from .row_predictions import RowPredictionCache
from .stepper import StepOutcome, Stepper
from .units import Decode, UnitState

MAX_WAIT_SHARE = 0.1
"""Longest wait of a round for the predictor, as a share of a step's time."""
MAX_WAIT_NS = 50_000_000
MAX_REST_ROUNDS = 64
"""Most rounds without a request, after the predictor did not answer or an exchange was not worth its cost."""

REMEMBERED_STEPS = 32
REMEMBERED_EXCHANGES = 16
"""Numbers of the latest steps and exchanges over which the costs are medians."""

METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"swap": swap, "auto": swap, "kmeans": kmeans}


class Costs:
    """Measured costs of decode steps and of moved rows. Each is 0 until measured, so an exchange is tried once."""

    def __init__(self) -> None:
        self._steps: deque[Stepped] = deque(maxlen=REMEMBERED_STEPS)
        self._exchanges: deque[int] = deque(maxlen=REMEMBERED_EXCHANGES)

    def add(self, stepped: Stepped, exchanged: bool) -> None:
        """Record a decode step; `exchanged`: rows of other units joined it."""
        self._steps.append(stepped)
        if exchanged:
            self._exchanges.append(stepped.moved_ns)

    @property
    def step_ns(self) -> float:
        """Return the time of a step, in ns, loading included."""
        return median(step.busy_ns for step in self._steps) if self._steps else 0.0

    @property
    def expert_ns(self) -> float:
        """Return the time of a step per expert that it ran, in ns, loading included."""
        return median(step.busy_ns / max(1, step.experts) for step in self._steps) if self._steps else 0.0

    @property
    def exchange_ns(self) -> float:
        """Return the time of moving rows, in ns for each unit that gets other rows.

        It is a median, because other programs disturb single measurements.
        """
        return median(self._exchanges) if self._exchanges else 0.0

    def drop_oldest_exchange(self) -> None:
        """Drop the oldest measured exchange, so that one that was too expensive is tried again later."""
        if self._exchanges:
            self._exchanges.popleft()


class Regrouper:
    """Decodes in rounds through a stepper, and exchanges rows between rounds."""

    def __init__(self, stepper: Stepper, method: str, row_predictions: RowPredictionCache, first_number: int) -> None:
        self._stepper, self._group = stepper, METHODS.get(method, swap)
        self._row_predictions = row_predictions
        self._costs = Costs()
        self._round_start = first_number
        self._wait_until_ns: int | None = None
        self._rest_rounds, self._next_rest = 0, 1
        self.regroupings = self.rows_moved = self.unpredicted = 0

    @property
    def wait_until_ns(self) -> int | None:
        """Return when the round continues without an answer; None: it does not wait."""
        return self._wait_until_ns

    @property
    def rejected(self) -> int:
        """Return the number of answers that fitted no question."""
        return self._row_predictions.rejected

    def decode(self, mode: Mode, compute: ComputeInfo, now_ns: int) -> list[SchedulerAction]:
        """Start the next step, after an exchange of rows where it saves time; start none while the round waits."""
        choice, actions = self._stepper.choose(mode.units, compute)
        if mode.grouping and choice is not None and self._ends_round(choice, compute):
            waiting = self._await_boundary(now_ns)
            if waiting is not None:
                return actions + waiting
            actions += self._begin_round()
            choice, more = self._stepper.choose(mode.units, compute)
            actions += more
        self._wait_until_ns = None
        return actions + (self._stepper.decode(choice, mode.prediction) if choice else [])

    def on_step_done(self, outcome: StepOutcome, stepped: Stepped, mode: Mode) -> list[SchedulerAction]:
        """Record a finished step, and request predictions for its rows at once, while other units run."""
        if not outcome.was_prefill:
            self._costs.add(stepped, outcome.exchanged)
        requests = mode.grouping and not self._rest_rounds and len(self._stepper.units) > 1
        rows = [] if outcome.unit.filling else outcome.unit.rows.values()
        return self._request_predictions(rows) if requests else []

    def on_row_predictions(self, answer: RowPredictions) -> None:
        """Store an answer of the predictor."""
        self._row_predictions.on_answer(answer)

    def on_compute_lost(self) -> None:
        """Forget all questions and answers: every unit is gone."""
        self._row_predictions.clear()
        self._wait_until_ns = None

    def _ends_round(self, choice: Decode, compute: ComputeInfo) -> bool:
        """Tell whether this would be the unit's second step in a round of units that may exchange rows."""
        return choice.unit.last_step > self._round_start and not choice.joins and self._stepper.may_exchange(compute)

    def _await_boundary(self, now_ns: int) -> list[SchedulerAction] | None:
        """Return the requests to send while the round waits for units and answers; None: it need not wait."""
        if self._rest_rounds:
            return None
        if self._stepper.steps_in_flight:
            return []
        if self._row_predictions.routes(self._requests()) is not None:
            return None
        if self._wait_until_ns is None:
            wait_ns = min(MAX_WAIT_NS, MAX_WAIT_SHARE * self._costs.step_ns)
            self._wait_until_ns = now_ns + int(wait_ns)
        return self._request_predictions(self._requests()) if now_ns < self._wait_until_ns else None

    def _begin_round(self) -> list[SchedulerAction]:
        """Exchange rows if that saves time; otherwise pause requests for some rounds."""
        self._round_start = self._stepper.number
        if self._rest_rounds:
            self._rest_rounds -= 1
            return []
        routes = self._row_predictions.routes(self._requests())
        self._row_predictions.clear()
        self.unpredicted += routes is None
        moves = {} if routes is None else self._moves(routes)
        if moves:
            self._next_rest = 1
        else:
            self._rest_rounds, self._next_rest = self._next_rest, min(2 * self._next_rest, MAX_REST_ROUNDS)
        self.regroupings += bool(moves)
        self.rows_moved += len(moves)
        return self._stepper.exchange(moves)

    def _moves(self, routes: np.ndarray) -> dict[int, UnitState]:
        """Return the new unit of every row whose move saves time, by row number."""
        units = self._stepper.active
        rows = [row for unit in units for row in unit.rows]
        before = np.repeat(np.arange(len(units)), [len(unit.rows) for unit in units])
        after = self._group(routes, before)
        moved = np.flatnonzero(after != before)
        saved = count_activated(routes, before) - count_activated(routes, after)
        changed = len(np.unique(before[moved]))
        if saved * self._costs.expert_ns <= changed * self._costs.exchange_ns:
            if self._next_rest == MAX_REST_ROUNDS:
                self._costs.drop_oldest_exchange()
            return {}
        return {rows[index]: units[after[index]] for index in moved.tolist()}

    def _requests(self) -> list[RequestState]:
        return [request for unit in self._stepper.active for request in unit.rows.values()]

    def _request_predictions(self, requests: Iterable[RequestState]) -> list[SchedulerAction]:
        question = self._row_predictions.ask(requests)
        return [] if question is None else [ToPredictor(question)]
