"""The compute process: steps from the scheduler to the executor, experts from the loader while a step waits for
them."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import UsageError
from ...ipc.messages import ComputeFromLoader, Copy, DropUnit, Filled, Hint, RunStep, Split
from ...ipc.messages.to_compute import ComputeFromScheduler
from ...ipc.shared.attachments import FOLDER
from ...ipc.stage.events import PeerJoined, Received, StageEvent, Stopping
from ...ipc.stage.stage import Stage
from ..checkpoint.stamps import OpenFiles
from ..checkpoint.survey import Survey
from ..gates.files import load_gates
from ..model.unit import RowAbilities
from ..traces.records import TraceHeader
from ..traces.stream import TraceFile
from .device.memory_budget import claim_memory
from .device.open import open_device
from .device.residency import DeviceResidency
from .device_assembly import bind_on_device, open_residency
from .executor import Executor, sample
from .experts.hints import Hinter, HintSource
from .experts.holdings import Holdings
from .experts.next_router import NextRouters
from .experts.residency import ComputeStopped, Residency
from .experts.routing import RoutingCollector
from .experts.slots import SlotViews
from .experts.tracing import StepTrace
from .recording import Recording
from .skeleton import attach, bind, load_unbound

LANE_COMPUTE, LANE_STALL = 0, 1


class ComputeShell:
    """One start of compute. Steps wait in a queue while one runs; what the loader says is taken in at once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        survey = stage.survey(Survey)
        self._device = open_device(stage.config.device)
        self._resident = survey.fully_resident(stage.spec.slots)
        self._files = OpenFiles(survey.stamps)
        # Before the slots are mapped: whoever maps them first, the loader by now, has their pages cleared.
        model = self._load(survey)
        self._steps: deque[ComputeFromScheduler | _NewScheduler] = deque()
        self._arrivals: list[ComputeFromLoader] = []
        self._scheduler_epoch = 0
        self._waiting_on = ""
        self._residency = self._open_residency(survey)
        self._trace = self._open_trace(survey)
        routing = RoutingCollector(self._trace, survey.layers, survey.encoder_layers)
        self._bind(model, routing)
        hinter = None if self._resident else self._hinter(model, survey)
        self._rows = survey.rows
        self._remarks = survey.remarks
        attachments = Path(stage.spec.run_dir) / FOLDER
        self._recording = Recording.open(stage.config.record, stage.spec.epoch, attachments)
        self._executor = Executor(
            model,
            RowAbilities.of(survey.rows),
            routing,
            self._residency,
            time.monotonic_ns,
            self._recording.watch(sample),
            hinter,
            attachments,
            self._device,
        )

    @property
    def _torch_device(self) -> torch.device:
        return torch.device("cpu") if self._device is None else self._device.torch_device

    def _load(self, survey: Survey) -> PreTrainedModel:
        """On a device once it is known that everything fits."""
        if self._device is None:
            return load_unbound(survey)
        claim_memory(self._device, self._stage.config, survey, self._stage.spec.slots)
        return load_unbound(survey, self._device.torch_device)

    def _open_residency(self, survey: Survey) -> Residency:
        stage, slots = self._stage, self._stage.spec.slots
        links: Any = {
            "send": lambda message: stage.send("loader", message),
            "receive": self._receive,
            "wait": self._wait,
            "clock_ns": time.monotonic_ns,
        }
        if self._device is not None:
            return open_residency(self._device, survey, slots, stage.arena("host").array, **links)
        holdings = Holdings(slots, survey.layers, survey.experts)
        return Residency(holdings, SlotViews(stage.arena("slots").array, survey), **links)

    def _bind(self, model: PreTrainedModel, routing: RoutingCollector) -> None:
        if self._device is not None and isinstance(self._residency, DeviceResidency):
            bind_on_device(model, self._residency, routing, self._device)
        else:
            bind(model, self._residency, routing)

    def _open_trace(self, survey: Survey) -> StepTrace | None:
        config, spec = self._stage.config, self._stage.spec
        if not config.trace:
            return None
        if survey.encoder_layers and config.trace_hidden:
            what = "hidden states are kept of tokens that see every layer, and with an encoder none does"
            raise UsageError(what, "trace_hidden", "Trace without them (hints = router needs no training)")
        header = TraceHeader.of("compute", spec.epoch, survey, spec.slots)
        file = TraceFile(config.trace, header)
        return StepTrace(file, header, config.trace_hidden, time.monotonic_ns, lambda: self._residency.counts.stall_ns)

    def _hinter(self, model: Any, survey: Survey) -> Hinter | None:
        if self._stage.config.hints == "off":
            return None
        source = self._hint_source(model, survey)
        uncalibrated = self._stage.config.belief == "literal"
        hinter = Hinter(source, survey.layers, survey.experts, survey.top_k, self._send_hint, uncalibrated)
        attach(hinter, model)
        return hinter

    def _hint_source(self, model: Any, survey: Survey) -> HintSource:
        config = self._stage.config
        if config.hints == "gates":
            return load_gates(config.gates_file, survey).to(self._torch_device)
        return NextRouters(model, survey.experts)

    def _send_hint(self, hint: Hint) -> None:
        self._stage.send("loader", hint)
        if self._trace is not None:
            self._trace.hint(hint)

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        self._stage.ready(self._facts())
        try:
            while self._stage.running:
                self._route(self._stage.poll(0 if self._steps else self._residency.poll()))
                for message in self._receive():
                    self._residency.receive(message)
                if self._steps:
                    self._obey(self._steps.popleft())
                if self._stage.publish_due:
                    self._publish()
        except ComputeStopped:
            pass
        self._publish()
        self._files.close()
        if self._trace is not None:
            self._trace.close()
        if self._device is not None:
            self._device.close()

    def _facts(self) -> dict[str, int | float | str]:
        rows = self._rows
        return {
            "padding": int(rows.padding),
            "moving": int(rows.moving),
            "reason": rows.reason,
            "remarks": "\n".join(self._remarks),
            "kv_bytes_per_position": rows.kv_bytes_per_position,
            "kv_bytes_per_row": rows.kv_bytes_per_row,
            "threads": torch.get_num_threads(),
            "resident": int(self._resident),
            **(self._device.facts() if self._device is not None else {}),
        }

    def _route(self, events: list[StageEvent]) -> None:
        for event in events:
            match event:
                case Received("scheduler", message):
                    self._steps.append(message)
                case Received("loader", message):
                    self._arrivals.append(message)
                case PeerJoined("loader"):
                    self._arrivals.clear()
                    self._residency.loader_joined()
                case PeerJoined("scheduler", epoch):
                    self._scheduler_epoch = epoch
                    self._steps.clear()
                    self._steps.append(_NewScheduler())
                case Stopping(gently=False):
                    raise ComputeStopped
                case _:
                    pass

    def _receive(self) -> list[Any]:
        """What the loader has said, in its order, without waiting. In a long step it is here that we are heard of."""
        if self._stage.publish_due:
            self._publish()
        arrivals, self._arrivals = self._arrivals, []
        return arrivals + self._stage.receive("loader")

    def _wait(self) -> list[Any]:
        """Block until the loader has said something; the scheduler's messages queue up meanwhile."""
        started_ns = time.monotonic_ns()
        detail = self._residency.waiting_for() if self._stage.draws else {}
        self._waiting_on = "loader"
        while not self._arrivals:
            self._route(self._stage.poll(self._residency.poll()))
            if self._stage.publish_due:
                self._publish()
        self._waiting_on = ""
        arrivals, self._arrivals = self._arrivals, []
        if self._stage.draws:
            detail["arrived"] = _arrived(arrivals)
            self._stage.add_span("stall", started_ns, time.monotonic_ns(), LANE_STALL, detail)
        return arrivals

    def _obey(self, order: Any) -> None:
        match order:
            case RunStep():
                self._run_step(order)
            case DropUnit():
                self._executor.forget(order)
                self._recording.order(order)
            case Split():
                self._executor.split(order)
                self._recording.order(order)
            case _:
                self._executor.forget_all()

    def _run_step(self, step: RunStep) -> None:
        epoch = self._scheduler_epoch
        name = "prefill" if step.admit else "decode"
        with self._stage.span(name, LANE_COMPUTE, step=step.number, unit=step.unit):
            stepped, used = self._executor.run(step)
        self._files.check()  # the skeleton's weights are pages of them: whoever writes there changes what was computed
        if used is not None and not self._resident:
            self._stage.send("loader", used)
        self._recording.step(step, stepped, used)
        if self._trace is not None:
            self._trace.write(step, stepped, used)
        if epoch == self._scheduler_epoch:
            self._stage.send("scheduler", stepped)

    def _publish(self) -> None:
        counters: dict[str, int | float] = {**self._residency.counters, "kv_bytes": self._executor.kv_bytes}
        self._stage.publish(
            done=self._executor.tokens_done, queue=len(self._steps), waiting_on=self._waiting_on, counters=counters
        )


def _arrived(messages: list[ComputeFromLoader]) -> str:
    """Return the experts that ended a wait, each with the cause that brought it."""
    filled = [message for message in messages if isinstance(message, Filled | Copy)]
    return ",".join(f"{each.expert} {each.cause.kind}" for each in filled)


class _NewScheduler:
    """Placed before the steps of a new scheduler: the units of its predecessor are dropped first."""
