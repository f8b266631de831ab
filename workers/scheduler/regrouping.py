"""Between two rounds of decode steps rows change units, where the experts saved are worth more than the move.

A round is one step of every unit. At its end all rows are at the same boundary: no unit is in flight, all next tokens
are known. Their routes were asked for as the steps ended; what the predictor does not answer in time is done without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np

from ...ipc.messages import RowPredictions, Stepped
from .events import SchedulerAction, ToPredictor
from .grouping.clustering import kmeans
from .grouping.objective import activated
from .grouping.swapping import swap
from .limits import ComputeInfo
from .mode_tuner import Mode
from .requests import RequestState
from .row_predictions import RowPredictionCache
from .stepper import Outcome, Stepper
from .unit_selection import Decode
from .units import UnitState

PATIENCE = 0.1
"""Share of a step that a round may wait for the predictor."""
MAX_PATIENCE_NS = 50_000_000
MAX_REST_ROUNDS = 64
"""Rounds without a question, after a predictor that did not answer or an exchange that would not have paid."""

REMEMBERED_STEPS = 32
REMEMBERED_EXCHANGES = 16
"""How many of the last ones are remembered."""

METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"swap": swap, "auto": swap, "kmeans": kmeans}


class Costs:
    """Of decode steps; 0 until measured, so that what was never tried is tried once."""

    def __init__(self) -> None:
        self._steps: deque[Stepped] = deque(maxlen=REMEMBERED_STEPS)
        self._exchanges: deque[int] = deque(maxlen=REMEMBERED_EXCHANGES)

    def add(self, stepped: Stepped, exchanged: bool) -> None:
        """A decode step; `exchanged`: rows from other units joined it."""
        self._steps.append(stepped)
        if exchanged:
            self._exchanges.append(stepped.moved_ns)

    @property
    def step_ns(self) -> float:
        return median(step.busy_ns for step in self._steps) if self._steps else 0.0

    @property
    def expert_ns(self) -> float:
        """The time of a step, loading included, by the experts it ran."""
        return median(step.busy_ns / max(1, step.experts) for step in self._steps) if self._steps else 0.0

    @property
    def exchange_ns(self) -> float:
        """Of moving rows, for each unit that gets other rows. A median: the machine does other things as well."""
        return median(self._exchanges) if self._exchanges else 0.0

    def forget_exchange(self) -> None:
        """What was found too dear is believed a little less each time, so that it is tried again one day."""
        if self._exchanges:
            self._exchanges.popleft()


class Regrouper:
    """Decodes with a stepper in rounds, and exchanges rows between them."""

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
        """When the round goes on without an answer; None: it does not wait."""
        return self._wait_until_ns

    @property
    def rejected(self) -> int:
        """Answers that fitted no question."""
        return self._row_predictions.rejected

    def decode(self, mode: Mode, compute: ComputeInfo, now_ns: int) -> list[SchedulerAction]:
        """The next step, of rows that have changed units where that pays; nothing while a round has to wait."""
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

    def stepped(self, outcome: Outcome, stepped: Stepped, mode: Mode) -> list[SchedulerAction]:
        """A step is done: ask at once how its rows will be routed next, while other units run."""
        if not outcome.was_prefill:
            self._costs.add(stepped, outcome.exchanged)
        asks = mode.grouping and not self._rest_rounds and len(self._stepper.units) > 1
        return self._ask(outcome.unit.rows.values()) if asks else []

    def row_predictions(self, answer: RowPredictions) -> None:
        """The predictor answered."""
        self._row_predictions.take_in(answer)

    def compute_lost(self) -> None:
        """All units are gone, and what was asked of their rows with them."""
        self._row_predictions.forget()
        self._wait_until_ns = None

    def _ends_round(self, choice: Decode, compute: ComputeInfo) -> bool:
        """Whether this would be the unit's second step in a round of several units that may exchange rows."""
        return choice.unit.last_step > self._round_start and not choice.joins and self._stepper.may_exchange(compute)

    def _await_boundary(self, now_ns: int) -> list[SchedulerAction] | None:
        """What is still to be asked while the round waits for other units and for answers; None: it need not wait."""
        if self._rest_rounds:
            return None
        if self._stepper.steps_in_flight:
            return []
        if self._row_predictions.routes(self._requests()) is not None:
            return None
        if self._wait_until_ns is None:
            patience_ns = min(MAX_PATIENCE_NS, PATIENCE * self._costs.step_ns)
            self._wait_until_ns = now_ns + int(patience_ns)
        return self._ask(self._requests()) if now_ns < self._wait_until_ns else None

    def _begin_round(self) -> list[SchedulerAction]:
        """Exchange rows if that pays; if not, take a rest."""
        self._round_start = self._stepper.number
        if self._rest_rounds:
            self._rest_rounds -= 1
            return []
        routes = self._row_predictions.routes(self._requests())
        self._row_predictions.forget()
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
        """The new unit of every row that had better move."""
        units = self._stepper.alive
        rows = [row for unit in units for row in unit.rows]
        before = np.repeat(np.arange(len(units)), [len(unit.rows) for unit in units])
        after = self._group(routes, before)
        moved = np.flatnonzero(after != before)
        saved = activated(routes, before) - activated(routes, after)
        changed = len(np.unique(before[moved]))
        if saved * self._costs.expert_ns <= changed * self._costs.exchange_ns:
            if self._next_rest == MAX_REST_ROUNDS:
                self._costs.forget_exchange()
            return {}
        return {rows[place]: units[after[place]] for place in moved.tolist()}

    def _requests(self) -> list[RequestState]:
        return [request for unit in self._stepper.alive for request in unit.rows.values()]

    def _ask(self, requests: Iterable[RequestState]) -> list[SchedulerAction]:
        question = self._row_predictions.ask(requests)
        return [] if question is None else [ToPredictor(question)]
