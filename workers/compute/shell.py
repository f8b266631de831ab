"""The compute process: runs the scheduler's steps, and receives experts from the loader while a step waits."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...ipc.messages import (
    ComputeFromLoader,
    Copy,
    DropPrefix,
    DropUnit,
    Filled,
    Hint,
    KeepPrefix,
    RunStep,
    Split,
    Stepped,
)
from ...ipc.messages.to_compute import ComputeFromScheduler
from ...ipc.shared.attachments import FOLDER
from ...ipc.stage.events import PeerJoined, Received, StageEvent, Stopping
from ...ipc.stage.stage import Stage
from ..checkpoint.stamps import OpenFiles
from ..checkpoint.survey import Survey
from ..model.unit import RowAbilities
from .assembly import Compute, LoaderLink, assemble_compute, open_hinter
from .device import open_device
from .device.memory import claim_memory
from .experts.residency import ComputeStopped
from .experts.tracing import open_trace
from .recording import Recording
from .sampling.sampler import make_sampler
from .skeleton import load_unbound

LANE_COMPUTE, LANE_STALL = 0, 1


class ComputeShell:
    """One start of compute. Steps queue while one runs; the loader's messages are handled at once."""

    def __init__(self, stage: Stage) -> None:
        """Load the model. Raises CheckpointError, UsageError or BudgetError if it cannot be run as configured."""
        self._stage = stage
        survey = stage.survey(Survey)
        self._rows, self._remarks, self._kernels = survey.rows, survey.remarks, survey.kernels
        self._device = open_device(stage.config.device)
        self._resident = survey.fully_resident(stage.spec.slots)
        self._files = OpenFiles(survey.stamps)
        self._steps: deque[ComputeFromScheduler | _NewScheduler] = deque()
        self._arrivals: list[ComputeFromLoader] = []
        self._scheduler_epoch = 0
        self._waiting_on = ""
        model = self._load(survey)
        self._trace = open_trace(stage.config, stage.spec.epoch, survey, stage.spec.slots, self._stall_ns)
        attachments = Path(stage.spec.run_dir) / FOLDER
        self._recording = Recording.open(stage.config.record, stage.spec.epoch, attachments, self._kernels)
        self._residency, self._executor = self._assemble(model, survey, attachments)

    def _load(self, survey: Survey) -> PreTrainedModel:
        """Load the skeleton; on a device, check first that everything fits."""
        if self._device is None:
            return load_unbound(survey)
        claim_memory(self._device, self._stage.config, survey, self._stage.spec.slots)
        return load_unbound(survey, self._device.torch_device)

    def _assemble(self, model: PreTrainedModel, survey: Survey, attachments: Path) -> Compute:
        """Map the slots and bind the model to them.

        The model is loaded before: the first process to map the slots, by now the loader, spends the time to clear
        their pages.
        """
        stage, config = self._stage, self._stage.config
        link = LoaderLink(lambda message: stage.send("loader", message), self._receive, self._wait)
        hints = "off" if self._resident else config.hints
        return assemble_compute(
            model,
            survey,
            stage.spec.slots,
            stage.arena("slots" if self._device is None else "host").array,
            link,
            device=self._device,
            hinter=open_hinter(model, survey, self._send_hint, hints, config.gates_file, config.belief == "literal"),
            abilities=RowAbilities.of(survey.rows),
            choose=self._recording.watch(make_sampler(survey)),
            attachments=attachments,
            trace=self._trace,
            store=stage.arena("host").array if config.link == "dma" else None,
        )

    def _stall_ns(self) -> int:
        return self._residency.counts.stall_ns

    def _send_hint(self, hint: Hint) -> None:
        self._stage.send("loader", hint)
        if self._trace is not None:
            self._trace.hint(hint)

    def run(self) -> None:
        """Serve until the supervisor stops the process."""
        self._stage.ready(self._facts())
        try:
            while self._stage.running:
                self._handle_events(self._stage.poll(0 if self._steps else self._residency.poll()))
                for message in self._receive():
                    self._residency.receive(message)
                if self._steps:
                    self._execute(self._steps.popleft())
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
            "extending": int(rows.extending),
            "copying": int(rows.copying),
            "reason": rows.reason,
            "remarks": "\n".join(self._remarks),
            "kv_bytes_per_position": rows.kv_bytes_per_position,
            "kv_bytes_per_row": rows.kv_bytes_per_row,
            "threads": torch.get_num_threads(),
            "kernels": self._kernels.origin,
            "kernels_s": self._kernels.seconds,
            "resident": int(self._resident),
            **(self._device.facts() if self._device is not None else {}),
        }

    def _handle_events(self, events: list[StageEvent]) -> None:
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
        """Return the loader's messages in order, without waiting.

        Publishes counters, too, since a long step comes by here only.
        """
        if self._stage.publish_due:
            self._publish()
        arrivals, self._arrivals = self._arrivals, []
        return arrivals + self._stage.receive("loader")

    def _wait(self) -> list[Any]:
        """Block until the loader has sent a message; the scheduler's messages queue up meanwhile."""
        started_ns = time.monotonic_ns()
        detail = self._residency.waiting_for() if self._stage.draws else None
        self._waiting_on = "loader"
        while not self._arrivals:
            self._handle_events(self._stage.poll(self._residency.poll()))
            if self._stage.publish_due:
                self._publish()
        self._waiting_on = ""
        arrivals, self._arrivals = self._arrivals, []
        if detail is not None:
            detail["arrived"] = _arrived(arrivals)
            self._stage.add_span("stall", started_ns, time.monotonic_ns(), LANE_STALL, detail)
        return arrivals

    def _execute(self, order: Any) -> None:
        match order:
            case RunStep():
                self._run_step(order)
            case DropUnit():
                self._executor.forget(order)
                self._recording.order(order)
            case Split():
                self._executor.split(order)
                self._recording.order(order)
            case KeepPrefix() | DropPrefix():
                self._executor.change_prefixes(order)
                self._recording.order(order)
            case _:
                self._executor.forget_all()

    def _run_step(self, step: RunStep) -> None:
        epoch = self._scheduler_epoch
        started_ns, stalled_ns = time.monotonic_ns(), self._stall_ns()
        stepped, routing = self._executor.run(step)
        self._add_step_span(step, stepped, started_ns, self._stall_ns() - stalled_ns)
        for row, error in stepped.failed.items():
            logging.getLogger(__name__).error("row %d failed in step %d: %s", row, step.number, error.code)
        self._files.check()  # the skeleton's weights are pages of these files: a write to one changes results
        if routing is not None and not self._resident:
            self._stage.send("loader", routing)
        self._recording.step(step, stepped, routing)
        if self._trace is not None:
            self._trace.write(step, stepped, routing)
        if epoch == self._scheduler_epoch:
            self._stage.send("scheduler", stepped)

    def _add_step_span(self, step: RunStep, stepped: Stepped, started_ns: int, waited_ns: int) -> None:
        if self._stage.draws:
            name = "prefill" if step.admit or step.continues else "decode"
            detail: dict[str, int | str] = {"step": step.number, "unit": step.unit, "rows": len(stepped.rows)}
            detail["waited_us"] = waited_ns // 1000
            self._stage.add_span(name, started_ns, time.monotonic_ns(), LANE_COMPUTE, detail)

    def _publish(self) -> None:
        counters: dict[str, int | float] = {
            **self._residency.counters,
            "kv_bytes": self._executor.kv_bytes,
            "prefill_tokens": self._executor.prefill_tokens,
        }
        self._stage.publish(
            done=self._executor.tokens_done,
            queue=len(self._steps),
            waiting_on=self._waiting_on,
            stalled_ns=self._residency.counts.stall_ns,
            counters=counters,
        )


def _arrived(messages: list[ComputeFromLoader]) -> str:
    """Return the experts that ended a wait, each with the cause that brought it."""
    filled = [message for message in messages if isinstance(message, Filled | Copy)]
    return ",".join(f"{fill.expert} {fill.cause.kind}" for fill in filled)


class _NewScheduler:
    """A mark before the steps of a new scheduler: the units of its predecessor are dropped first."""
