"""The loader and compute in one process, without sockets: what `verify` reruns recordings with, and tests the cores by.

The parts are those of the real processes (ledger, reader threads, holdings, executor); only the messages are
function calls.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ipc.messages import (
    ComputeFromLoader,
    DropUnit,
    PredictStep,
    RunStep,
    Split,
    Stepped,
    StepPrediction,
    StepRouting,
)
from ...ipc.shared.slot_references import REFERENCE_BYTES
from ...workers.checkpoint.survey import Survey
from ...workers.compute.assembly import LoaderLink, assemble_compute, open_hinter
from ...workers.compute.device.base import Device
from ...workers.compute.experts.residency import IDLE_MS, FeedCounts
from ...workers.compute.recording import Order
from ...workers.compute.sampling.sampler import Chooser, sample
from ...workers.compute.skeleton import load_unbound
from ...workers.loader.events import ComputeJoined
from ...workers.loader.fills import DeviceSlots, ReferenceSlots, SharedSlots, Slots
from ...workers.loader.ledger import Ledger
from ...workers.loader.runtime import LoaderRuntime
from ...workers.loader.transfer.expert_sources import FileSource
from ...workers.loader.transfer.host_store import fill_store
from ...workers.loader.transfer.link import EmulatedLink
from ...workers.model.unit import RowAbilities

if TYPE_CHECKING:
    from ...workers.predictor.base.forecaster import Forecaster


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
        device: Device | None = None,
        places: int = 0,
        link: EmulatedLink | None = None,
    ) -> None:
        """With a `device` the slots are in its memory, and `places` of the host store are before them (tier disk).

        With a `link` slots refer to the host store, each expert after its time on the link (link = dma).
        """
        self._device = device
        survey = survey.lay_out(slots, tier, "cpu" if device is None else device.name)
        self._survey, self._forecaster, self._tier, self._readers = survey, forecaster, tier, readers
        self._inbox: list[ComputeFromLoader] = []
        self.ledger = Ledger(slots, survey.layers, survey.experts, survey.top_k, fills_in_flight=2 * readers)
        self._store: np.ndarray | None = None
        memory = self._open_memory(slots, places, link)
        self.model = load_unbound(survey, None if device is None else device.torch_device)
        hinter = open_hinter(self.model, survey, self._tell_loader) if hints else None
        peer = LoaderLink(self._tell_loader, self._receive, self._wait)
        self._residency, self._executor = assemble_compute(
            self.model, survey, slots, memory, peer, device, hinter, abilities, choose, attachments, store=self._store
        )
        self._tell_loader(ComputeJoined())
        self._residency.loader_joined()

    def _open_memory(self, slots: int, places: int, link: EmulatedLink | None) -> np.ndarray:
        if link is not None:
            return self._open_references(slots, link)
        return self._open_slots(slots) if self._device is None else self._open_store(places)

    def _open_references(self, slots: int, link: EmulatedLink) -> np.ndarray:
        memory, self._store = _memory(slots * REFERENCE_BYTES), self._filled_store()
        self._loader = self._open_loader(ReferenceSlots(memory, link))
        return memory

    def _open_slots(self, slots: int) -> np.ndarray:
        survey = self._survey
        memory = _memory(slots * survey.stride_bytes)
        store = self._filled_store() if self._tier == "host" else None
        self._loader = self._open_loader(SharedSlots(memory, store))
        return memory

    def _open_store(self, places: int) -> np.ndarray:
        survey, is_full = self._survey, self._tier == "host"
        store = self._filled_store() if is_full else _memory(places * survey.stride_bytes)
        device_slots = DeviceSlots(store.size // survey.stride_bytes, None if is_full else store)
        self._loader = self._open_loader(device_slots)
        return store

    def _open_loader(self, slots: Slots) -> LoaderRuntime:
        return LoaderRuntime(self._survey, self.ledger, slots, self._readers, self._inbox_put)

    def _filled_store(self) -> np.ndarray:
        survey = self._survey
        store = _memory(survey.expert_count * survey.stride_bytes)
        fill_store(FileSource(survey), store, survey, self._readers, lambda what, done, total: None)
        return store

    def __enter__(self) -> LocalRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()
        if self._device is not None:
            self._device.close()  # before the store's memory goes, and while copies into slots have somewhere to go

    @property
    def counts(self) -> FeedCounts:
        """Hits, misses and stall so far."""
        return self._residency.counts

    def run(self, step: RunStep, coming: PredictStep | None = None) -> tuple[Stepped, StepRouting | None]:
        """One step; `coming` is forecast first when there is a forecaster."""
        if self._forecaster is not None and coming is not None:
            from ...workers.predictor.base.forecaster import scores

            self._tell_loader(StepPrediction(step.number, scores(self._forecaster.forecast(coming))))
        stepped, used = self._executor.run(step)
        if used is not None:
            self._tell_loader(used)
            if self._forecaster is not None:
                self._forecaster.learn(used)
        return stepped, used

    def order(self, order: Order) -> None:
        """A change of units or prefixes without a step."""
        match order:
            case Split():
                self._executor.split(order)
            case DropUnit():
                self._executor.forget(order)
            case _:
                self._executor.change_prefixes(order)

    def _tell_loader(self, event: Any) -> None:
        self._loader.handle(event)

    def _inbox_put(self, message: ComputeFromLoader) -> None:
        self._inbox.append(message)

    def _receive(self) -> list[Any]:
        self._loader.collect()
        inbox, self._inbox = self._inbox, []
        return inbox

    def _wait(self) -> list[Any]:
        while not self._inbox:
            idle = (
                self._residency.poll() == IDLE_MS
            )  # else copies to a device are under way: the loader may wait for one
            if idle and not self._inbox:
                self._loader.wait_for_transfer()
            self._loader.collect()
        return self._receive()


def _memory(count_bytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, count_bytes), dtype=np.uint8)
