"""The loader process: messages to the ledger, the ledger's actions to reader threads and to compute."""

from __future__ import annotations

import os
import queue
import time

import numpy as np

from ...configs.sizes import parse_size
from ...ipc.messages import CopiesDone, Copy, Filled, StepRouting
from ...ipc.stage.events import PeerJoined, Received
from ...ipc.stage.stage import Stage
from ..checkpoint.survey import Survey
from .drawing import Drawing
from .events import ComputeJoined, FillDone, LedgerEvent, PromoteFill, StartFill
from .fills import DeviceFills, Fills, SharedFills
from .host_tier import HostTier
from .ledger_log import LedgerHeader, LedgerLog
from .transfer.host_store import await_full, fill_store, tell_full
from .transfer.link import EmulatedLink
from .transfer.transfers import ExpertSource, FileSource, StoreSource, Transfer, TransferEngine, failure_of


class LoaderShell:
    """One start of the loader. The ledger decides, this carries out."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._survey = stage.survey(Survey)
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._slots = stage.spec.slots
        header = self._header()
        self._ledger = header.make(explain=stage.draws)
        self._log = LedgerLog.open(stage.config.record, stage.spec.epoch, header)
        self._ordered_bytes = self._read_bytes = 0
        self._drawing = self._open_drawing() if stage.draws else None
        self._fills = self._open_fills()

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        stage = self._stage
        stage.ready(
            {
                "link": f"emulated, {stage.config.link_rate} a second" if stage.config.link_rate else stage.config.tier,
                "layers": self._survey.layers,
                "slots": self._slots,
                "slot_bytes": self._survey.stride_bytes,
                "expert_bytes": self._survey.expert_bytes,
                "experts_bytes": self._survey.experts_bytes,
            }
        )
        try:
            while stage.running:
                for event in stage.poll(1000):
                    self._on_event(event)
                self._collect_transfers()
                if stage.publish_due:
                    self._publish()
        finally:
            self._fills.close()
        self._publish()
        self._log.close()

    def _header(self) -> LedgerHeader:
        config, survey = self._stage.config, self._survey
        return LedgerHeader(
            slots=self._slots,
            layers=survey.layers,
            experts=survey.experts,
            top_k=survey.top_k,
            policy=config.policy,
            fills_in_flight=2 * config.reads_in_flight,
            by_layer=config.slot_sharing == "layer",
            rank_victims=config.rank_victims,
            uncalibrated=config.belief == "literal",
            volatile=config.on_device,
        )

    def _open_drawing(self) -> Drawing:
        into = "place" if self._stage.config.on_device else "slot"
        return Drawing(self._stage.add_span, time.monotonic_ns, into)

    def _open_fills(self) -> Fills:
        config, survey = self._stage.config, self._survey
        whole = config.tier == "host"
        if whole:
            self._fill_whole()
        if not config.on_device:
            source = StoreSource(self._stage.arena("host").array, survey, self._link()) if whole else FileSource(survey)
            return SharedFills(self._engine(source, self._stage.arena("slots").array))
        store = self._stage.arena("host")  # a full one is not mapped here: only compute reads it
        tier = HostTier(store.size_bytes // survey.stride_bytes, survey.experts, whole)
        reader = None if whole else self._engine(FileSource(survey), store.array)
        return DeviceFills(tier, reader, self._send_copy)

    def _send_copy(self, copy: Copy) -> None:
        if self._drawing is not None:
            self._drawing.copy_ordered(copy)
        self._stage.send("compute", copy)

    def _engine(self, source: ExpertSource, memory: np.ndarray) -> TransferEngine:
        readers = self._stage.config.reads_in_flight
        return TransferEngine(source, memory, self._survey.stride_bytes, readers, self._on_done, time.monotonic_ns)

    def _fill_whole(self) -> None:
        """Returns when it is full. A successor finds it as its predecessor filled it, an engine of a group as the first
        one does: neither opens the checkpoint's files."""
        spec = self._stage.spec
        if spec.host_filled:
            await_full(spec.full_fd)
        else:
            store = self._stage.arena("host").array
            files, readers = FileSource(self._survey), self._stage.config.reads_in_flight
            fill_store(files, store, self._survey, readers, self._stage.progress)
            tell_full(spec.full_fd)

    def _link(self) -> EmulatedLink | None:
        rate = self._stage.config.link_rate
        if not rate:
            return None
        return EmulatedLink(parse_size(rate, "link_rate").of(0), time.monotonic_ns, time.sleep)

    def _on_event(self, event: object) -> None:
        match event:
            case PeerJoined("compute"):
                if self._drawing is not None:
                    self._drawing.compute_joined()
                self._fills.compute_joined()
                self._decide(ComputeJoined())
            case Received("compute", CopiesDone(numbers)):
                if self._drawing is not None:
                    self._drawing.copies_ended(numbers)
                self._fill_up(self._fills.copied(numbers))
            case Received("compute", StepRouting() as used):
                self._stage.send("predictor", used)
                self._decide(used)
            case Received(_, message):
                self._decide(message)
            case _:
                pass

    def _decide(self, event: LedgerEvent) -> None:
        self._log.write(event)
        actions = self._ledger.handle(event)
        if self._drawing is not None:
            self._drawing.notes(self._ledger.explanations())
        for action in actions:
            match action:
                case StartFill():
                    self._ordered_bytes += self._survey.bytes_of(action.expert)
                    self._fills.start(action.slot, action.layer, action.expert, action.urgent, action.cause)
                case PromoteFill():
                    self._fills.promote(action.slot)
                case Filled() if self._fills.announced:
                    pass
                case _:
                    self._stage.send("compute", action)

    def _on_done(self, transfer: Transfer) -> None:
        """Called from a reader thread: hand over and wake the loop."""
        self._done.put(transfer)
        os.write(self._stage.wake_fd, b"t")

    def _collect_transfers(self) -> None:
        while not self._done.empty():
            transfer = self._done.get()
            if (failure := failure_of(transfer, self._survey.folder)) is not None:
                raise failure
            self._read_bytes += self._survey.bytes_of(transfer.expert)
            if self._drawing is not None:
                self._drawing.load(transfer)
            self._fill_up(self._fills.read(transfer))

    def _fill_up(self, filled: list[FillDone]) -> None:
        for each in filled:
            self._decide(each)

    def _publish(self) -> None:
        facts = self._ledger.statistics()
        self._log.mark(facts)
        counters: dict[str, int | float] = {name: getattr(facts, name) for name in facts.__struct_fields__}
        counters["read_bytes"] = self._read_bytes
        counters["bytes"] = self._ordered_bytes if self._fills.announced else self._read_bytes
        self._stage.publish(done=facts.loads, queue=facts.filling, counters=counters)
