"""The loader process: passes messages between its peers and the `LoaderRuntime`."""

from __future__ import annotations

import os
import time

from ...configs.sizes import parse_size
from ...ipc.messages import ComputeFromLoader, StepRouting
from ...ipc.stage.events import PeerJoined, Received
from ...ipc.stage.stage import Stage
from ..checkpoint.survey import Survey
from .drawing import Drawing
from .events import ComputeJoined
from .fills import DeviceSlots, ReferenceSlots, SharedSlots, Slots
from .ledger_log import LedgerHeader, LedgerLog
from .reads import Reads
from .runtime import LoaderRuntime
from .transfer.host_store import await_full, fill_store, notify_full
from .transfer.link import EmulatedLink


class LoaderShell:
    """One start of the loader process."""

    def __init__(self, stage: Stage) -> None:
        """Start the reader threads; with tier host, fill the host store first.

        Raises CheckpointError if a file is gone or changed since the survey, EngineError if one cannot be read.
        """
        self._stage = stage
        self._survey = stage.survey(Survey)
        self._reads = Reads(stage.config.verify_reads, stage.config.reads_in_flight, stage.progress)
        header = self._header()
        self._runtime = LoaderRuntime(
            self._survey,
            header.make(),
            self._open_slots(),
            stage.config.reads_in_flight,
            self._send,
            wake=self._wake,
            log=LedgerLog.open(stage.config.record, stage.spec.epoch, header),
            drawing=self._open_drawing(),
            reads=self._reads,
        )

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        stage = self._stage
        stage.ready(
            {
                "link": self._describe_link(),
                "layers": self._survey.layers,
                "slots": stage.spec.slots,
                "slot_bytes": self._survey.stride_bytes,
                "expert_bytes": self._survey.expert_bytes,
                "experts_bytes": self._survey.experts_bytes,
            }
        )
        try:
            while stage.running:
                for event in stage.poll(1000):
                    self._on_event(event)
                self._runtime.collect()
                if stage.publish_due:
                    self._publish()
            self._publish()
        finally:
            self._runtime.close()

    def _header(self) -> LedgerHeader:
        config, survey = self._stage.config, self._survey
        return LedgerHeader(
            slots=self._stage.spec.slots,
            layers=survey.layers,
            experts=survey.experts,
            top_k=survey.top_k,
            policy=config.policy,
            fills_in_flight=2 * config.reads_in_flight,
            by_layer=config.slot_sharing == "layer",
            whole_layers=config.layer_loads == "whole",
            rank_victims=config.rank_victims,
            uncalibrated=config.belief == "literal",
            volatile=config.on_device,
        )

    def _open_drawing(self) -> Drawing:
        into = "place" if self._stage.config.on_device else "slot"
        return Drawing(self._stage.add_span, time.monotonic_ns, into, lambda: self._stage.draws)

    def _open_slots(self) -> Slots:
        """Return the slots; with tier host, behind a full host store."""
        stage, is_full = self._stage, self._stage.config.tier == "host"
        if is_full:
            self._fill_store()
        if not stage.config.on_device:
            memory, link = stage.arena("slots").array, self._link()
            if link is not None and stage.config.link == "dma":
                return ReferenceSlots(memory, link)
            return SharedSlots(memory, stage.arena("host").array, link) if is_full else SharedSlots(memory)
        store = stage.arena("host")  # a full one is not mapped here: only compute reads it
        return DeviceSlots(store.size_bytes // self._survey.stride_bytes, None if is_full else store.array)

    def _fill_store(self) -> None:
        """Fill the host store, or wait until another process of a group has filled it.

        A successor and an engine of a group find the store filled. Neither opens the checkpoint's files.
        """
        spec = self._stage.spec
        if spec.host_filled:
            await_full(spec.full_fd)
        else:
            store = self._stage.arena("host").array
            files, readers = self._reads.open(self._survey), self._stage.config.reads_in_flight
            fill_store(files, store, self._survey, readers, self._stage.progress)
            notify_full(spec.full_fd)

    def _link(self) -> EmulatedLink | None:
        config = self._stage.config
        if not config.link_rate:
            return None
        rate, latency_ns = parse_size(config.link_rate, "link_rate").of(0), round(config.link_latency_us * 1000)
        return EmulatedLink(rate, time.monotonic_ns, time.sleep, latency_ns)

    def _describe_link(self) -> str:
        config = self._stage.config
        if not config.link_rate:
            return config.tier
        kind = "emulated, no core copies" if config.link == "dma" else "emulated"
        return f"{kind}, {config.link_rate} a second"

    def _send(self, message: ComputeFromLoader) -> None:
        self._stage.send("compute", message)

    def _wake(self) -> None:
        """Wake the loop. Called from a reader thread."""
        os.write(self._stage.wake_fd, b"t")

    def _on_event(self, event: object) -> None:
        match event:
            case PeerJoined("compute"):
                self._runtime.handle(ComputeJoined())
            case Received("compute", StepRouting() as routing):
                self._stage.send("predictor", routing)
                self._runtime.handle(routing)
            case Received(_, message):
                self._runtime.handle(message)
            case _:
                pass

    def _publish(self) -> None:
        statistics = self._runtime.mark()
        counters: dict[str, int | float] = {name: getattr(statistics, name) for name in statistics.__struct_fields__}
        counters |= self._runtime.counters()
        self._stage.publish(done=statistics.loads, queue=statistics.filling, counters=counters)
        if self._stage.watched:
            self._stage.report(self._runtime.heat())
