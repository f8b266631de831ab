"""The loader and compute in one process, without sockets: what `verify` reruns recordings with, and tests the cores by.

The parts are those of the real processes (ledger, reader threads, holdings, executor); only the messages are
function calls.
"""

from __future__ import annotations

import mmap
import queue
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..ipc.messages import ComputeFromLoader, Forecast, Forget, Plan, RunStep, Split, Stepped, Used
from ..workers.checkpoint.survey import Survey
from ..workers.compute.executor import Chooser, Executor, sample
from ..workers.compute.hints import Hinter
from ..workers.compute.holdings import Holdings
from ..workers.compute.model import attach, load_model
from ..workers.compute.next_router import NextRouters
from ..workers.compute.residency import FeedCounts, Residency
from ..workers.compute.routing import StepRouting
from ..workers.compute.slots import SlotViews
from ..workers.compute.unit import RowAbilities
from ..workers.loader.events import ComputeJoined, FillDone, LedgerEvent, PromoteFill, StartFill
from ..workers.loader.ledger import Ledger
from ..workers.loader.store import fill_store
from ..workers.loader.transfers import ExpertSource, FileSource, StoreSource, Transfer, TransferEngine

if TYPE_CHECKING:
    from ..workers.predictor.forecaster import Forecaster


class LocalRuntime:
    """One model over `slots` expert slots; a context manager."""

    def __init__(
        self,
        survey: Survey,
        slots: int,
        abilities: RowAbilities | None = None,
        choose: Chooser = sample,
        forecaster: Forecaster | None = None,
        readers: int = 2,
        tier: str = "disk",
        attachments: Path | None = None,
        hints: bool = True,
    ) -> None:
        survey = survey.laid_out(slots, tier)
        self._survey, self._forecaster = survey, forecaster
        memory = np.frombuffer(mmap.mmap(-1, slots * survey.stride_bytes), dtype=np.uint8)
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._inbox: list[ComputeFromLoader] = []
        self.ledger = Ledger(slots, survey.layers, survey.experts, survey.top_k, fills_in_flight=2 * readers)
        self._transfers = TransferEngine(
            _source(survey, tier, readers), memory, survey.stride_bytes, readers, self._done.put, time.monotonic_ns
        )
        holdings = Holdings(slots, survey.layers, survey.experts)
        routing = StepRouting(None, survey.layers, survey.encoder_layers)
        self._residency = Residency(
            holdings, SlotViews(memory, survey), self._tell_loader, self._hear, self._wait, time.monotonic_ns
        )
        self.model = load_model(survey, self._residency, routing)
        hinter = self._hinter(survey) if hints else None
        rows = abilities or RowAbilities()
        clock_ns = time.monotonic_ns
        self._executor = Executor(self.model, rows, routing, self._residency, clock_ns, choose, hinter, attachments)
        self._tell_loader(ComputeJoined())
        self._residency.loader_joined()

    def _hinter(self, survey: Survey) -> Hinter:
        source = NextRouters(self.model, survey.experts)
        hinter = Hinter(source, survey.layers, survey.experts, survey.top_k, self._tell_loader)
        attach(hinter, self.model)
        return hinter

    def __enter__(self) -> LocalRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transfers.close()

    @property
    def counts(self) -> FeedCounts:
        """Hits, misses and stall so far."""
        return self._residency.counts

    def run(self, step: RunStep, coming: Forecast | None = None) -> tuple[Stepped, Used | None]:
        """One step; `coming` is forecast first when there is a forecaster."""
        if self._forecaster is not None and coming is not None:
            from ..workers.predictor.forecaster import scores

            self._tell_loader(Plan(step.number, scores(self._forecaster.forecast(coming))))
        stepped, used = self._executor.run(step)
        if used is not None:
            self._tell_loader(used)
            if self._forecaster is not None:
                self._forecaster.learn(used)
        return stepped, used

    def order(self, order: Split | Forget) -> None:
        """A change of units without a step."""
        if isinstance(order, Split):
            self._executor.split(order)
        else:
            self._executor.forget(order)

    def _tell_loader(self, event: Any) -> None:
        self._decide(event)

    def _decide(self, event: LedgerEvent) -> None:
        for action in self.ledger.handle(event):
            match action:
                case StartFill():
                    self._transfers.start(action.slot, action.layer, action.expert, action.urgent)
                case PromoteFill():
                    self._transfers.promote(action.slot)
                case _:
                    self._inbox.append(action)

    def _hear(self) -> list[ComputeFromLoader]:
        while not self._done.empty():
            self._collect(self._done.get())
        inbox, self._inbox = self._inbox, []
        return inbox

    def _wait(self) -> list[ComputeFromLoader]:
        while not self._inbox:
            self._collect(self._done.get())
        return self._hear()

    def _collect(self, transfer: Transfer) -> None:
        if transfer.error is not None:
            raise CheckpointError(str(transfer.error), self._survey.folder, "Check the checkpoint's files")
        self._decide(FillDone(transfer.slot))


def _source(survey: Survey, tier: str, readers: int) -> ExpertSource:
    files = FileSource(survey)
    if tier == "disk":
        return files
    store = np.frombuffer(mmap.mmap(-1, survey.expert_count * survey.stride_bytes), dtype=np.uint8)
    fill_store(files, store, survey, readers, lambda what, done, total: None)
    return StoreSource(store, survey)
