"""The loader's ledger, reader threads and policies, and compute's holdings, in one process and without text."""

from __future__ import annotations

import mmap
import time
from types import TracebackType
from typing import Any

import numpy as np

from .....errors import BudgetError
from .....ipc.messages import ComputeFromLoader, StepPrediction, StepRouting
from .....workers.checkpoint.survey import Survey
from .....workers.compute.experts.holdings import Holdings
from .....workers.compute.experts.residency import FeedCounts, Residency
from .....workers.compute.experts.slots import SlotViews
from .....workers.loader.events import ComputeJoined
from .....workers.loader.fills import SharedSlots
from .....workers.loader.ledger import Ledger
from .....workers.loader.policies import make_policy
from .....workers.loader.runtime import LoaderRuntime

READERS = 2


class LocalLoader:
    """Slots of one survey behind real parts; messages are function calls. A context manager."""

    def __init__(
        self, survey: Survey, slots: int, policy: str, *, by_layer: bool = False, trusts_predictions: bool = False
    ) -> None:
        """`trusts_predictions`: as the paper's cache does, predictions rank the victims and are taken as they are.

        Raises BudgetError if each layer shall have slots of its own and there are fewer slots than layers.
        """
        if by_layer and slots < survey.layers:
            what = f"{slots} slots are fewer than the {survey.layers} layers that shall each have one"
            raise BudgetError(what, "slots", "Give a larger share, or share the slots")
        survey = survey.lay_out(slots, "disk")
        shape = survey.layers, survey.experts, survey.top_k
        self.ledger = Ledger(
            slots,
            *shape,
            make_policy(policy, *shape),
            fills_in_flight=2 * READERS,
            by_layer=by_layer,
            rank_victims="always" if trusts_predictions else "auto",
            uncalibrated=trusts_predictions,
        )
        self._inbox: list[ComputeFromLoader] = []
        memory = np.frombuffer(mmap.mmap(-1, slots * survey.stride_bytes), dtype=np.uint8)
        self._loader = LoaderRuntime(survey, self.ledger, SharedSlots(memory), READERS, self._inbox.append)
        holdings = Holdings(slots, survey.layers, survey.experts)
        views = SlotViews(memory, survey)
        self.residency = Residency(holdings, views, self.tell, self._receive, self._wait, time.perf_counter_ns)
        self.tell(ComputeJoined())
        self.residency.loader_joined()

    def __enter__(self) -> LocalLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()

    @property
    def counts(self) -> FeedCounts:
        """Hits, misses and stall so far."""
        return self.residency.counts

    @property
    def read_bytes(self) -> int:
        """Bytes read from the file so far."""
        return int(self._loader.counters()["read_bytes"])

    def tell(self, event: Any) -> None:
        """Hand an event to the loader: a message of compute, a prediction or the routing of a step."""
        self._loader.handle(event)

    def predict(self, step: int, scores: bytes) -> None:
        """Hand over a prediction, uint8 [layers, experts]."""
        self.tell(StepPrediction(step, scores))

    def report(self, routing: StepRouting) -> None:
        """Hand over what a step really used."""
        self.tell(routing)

    def _receive(self) -> list[Any]:
        self._loader.collect()
        inbox = list(self._inbox)
        self._inbox.clear()
        return inbox

    def _wait(self) -> list[Any]:
        while not self._inbox:
            self._loader.wait_for_transfer()
            self._loader.collect()
        return self._receive()
