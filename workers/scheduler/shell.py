"""The scheduler process: turns messages into events of the core, and its actions into messages."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...ipc.messages import Finished, Refused, RowPredictions, RunStep, Stepped, Submit, ToClient
from ...ipc.messages.to_scheduler import FROM_CLIENT
from ...ipc.shared.open_files import allow_open_files
from ...ipc.stage.events import IntakeClosed, PeerJoined, PeerLost, Received
from ...ipc.stage.events import StageEvent as StageEvent
from ...ipc.stage.stage import Stage
from ...ipc.transport.addresses import CLIENTS, socket_address
from ...ipc.transport.codec import Unreadable, decode
from ...ipc.transport.router import Router
from ...ipc.transport.unread import UnreadClients
from ..checkpoint.survey import Survey
from . import events
from .limits import ModelInfo, SchedulerLimits, SchedulerStatistics
from .state import SchedulerState

MAX_WAIT_MS = 1000
MAX_CLIENTS = 16_384
"""Files that this process may open, if the system lets it: each client is one."""
CLOSE_TIMEOUT_MS = 500


class _RequestId(msgspec.Struct):
    request_id: str = ""


_ID_DECODER = msgspec.msgpack.Decoder(_RequestId)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A step in flight, for the timeline."""

    at_ns: int
    name: str
    lane: int


class SchedulerShell:
    """One start of the scheduler: performs what the core decides."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        survey = stage.survey(Survey)
        self._resident = False
        limits = scheduler_limits(stage.config)
        self._facts: dict[str, int | float | str] = {
            "queue_limit": limits.queue_limit,
            "kv_budget_bytes": limits.kv_bytes,
            "model": _model_name(stage.config.model),
        }
        self._state = SchedulerState(model_info(survey), limits, stage.spec.epoch)
        allow_open_files(MAX_CLIENTS)
        address = socket_address(stage.spec.run_dir, CLIENTS)
        # Raw, since a message that breaks the schema must still be answered under its request id.
        self._clients: Router[msgspec.Raw] = Router(stage.context, address, msgspec.msgpack.Decoder(msgspec.Raw))
        self._unread = UnreadClients()
        self._sent: dict[int, _Sent] = {}
        self._logged_trials = 0
        self._ticked_ns = time.monotonic_ns()
        self._stalled_ns = 0
        stage.watch("clients", self._clients.socket)

    def run(self) -> None:
        """Serve until the supervisor stops the stage."""
        self._stage.ready(self._facts)
        while self._stage.running:
            for event in self._poll():
                self._on_event(event)
            self._clients.check_room()
            self._unread.tell(self._clients.deliver, self._clients.high_water, time.monotonic_ns())
            self._ticked_ns = time.monotonic_ns()
            self._decide(events.Tick(self._ticked_ns))
            if self._stage.publish_due:
                self._publish()
        self._shut_down()

    def _poll(self) -> list[StageEvent]:
        """Wait for events; the time counts as a stall while compute has a step."""
        before_ns, is_stalled = self._stage.waited_ns, bool(self._sent)
        events = self._stage.poll(self._wait_ms())
        if is_stalled:
            self._stalled_ns += self._stage.waited_ns - before_ns
        return events

    def _shut_down(self) -> None:
        """End all open requests with the error that the engine stops, and close the socket."""
        self._receive_clients()
        self._decide(events.Draining(time.monotonic_ns()))
        self._publish()
        self._clients.close(CLOSE_TIMEOUT_MS)

    def _wait_ms(self) -> int:
        """Return how long nothing is due, in ms, counted from the last tick: what fell due since then is due now."""
        wake_at_ns = self._state.wake_at_ns(self._ticked_ns)
        if wake_at_ns is None:
            return MAX_WAIT_MS
        return max(0, min(MAX_WAIT_MS, -(-(wake_at_ns - time.monotonic_ns()) // 1_000_000)))

    def _on_event(self, event: StageEvent) -> None:
        now_ns = time.monotonic_ns()
        match event:
            case Received("compute", Stepped() as stepped):
                self._add_step_span(stepped, now_ns)
                self._decide(events.StepDone(stepped, now_ns))
            case Received("predictor", RowPredictions() as answer):
                self._decide(events.RowPredictionsReady(answer))
            case PeerJoined("compute", _, facts):
                self._sent.clear()
                self._resident = bool(facts.get("resident"))
                self._decide(events.ComputeJoined(now_ns, facts))
            case IntakeClosed():
                self._receive_clients()  # what was sent before the drain is accepted
                self._decide(events.IntakeClosed())
                self._publish()
            case PeerLost("compute"):
                self._sent.clear()
                self._decide(events.ComputeLost(now_ns))
                self._publish()
            case _:
                self._receive_clients()

    def _receive_clients(self) -> None:
        for identity, raw in self._clients.receive():
            if isinstance(raw, Unreadable):
                self._decide(events.Unreadable(identity, "", raw.reason))
                continue
            message = decode(FROM_CLIENT, raw)
            if isinstance(message, Submit) and self._stage.spec.log.prompts:
                logging.getLogger(__name__).info("request %s: prompt %s", message.request_id, message.prompt_ids)
            if isinstance(message, Unreadable):
                self._decide(events.Unreadable(identity, _request_id(raw), message.reason))
                continue
            if isinstance(message, Submit):
                self._unread.discard(identity, message.request_id)
            self._decide(events.ClientMessage(identity, message, time.monotonic_ns()))

    def _decide(self, event: events.SchedulerEvent) -> None:
        for action in self._state.handle(event):
            match action:
                case events.Send(identity, message):
                    _log_end(message, self._stage.spec.log.prompts)
                    self._answer(identity, message)
                case events.ToPredictor(message):
                    if not self._resident:  # with a slot for every expert there is nothing to predict
                        self._stage.send("predictor", message)
                case events.ToCompute(message):
                    if isinstance(message, RunStep):
                        self._record_sent(message)
                    self._stage.send("compute", message)

    def _answer(self, identity: bytes, message: ToClient) -> None:
        """Send an answer; where it cannot be delivered, the client's requests are dropped."""
        delivery = self._clients.deliver(identity, message)
        if delivery == "sent":
            if isinstance(message, Finished | Refused):
                self._unread.discard(identity, message.request_id)
            return
        lost = self._state.open_ids(identity)
        self._decide(events.ClientLost(identity, time.monotonic_ns()))
        if delivery == "gone":
            self._unread.forget(identity)
        elif self._unread.lose(identity, [*lost, getattr(message, "request_id", "")]):
            words = "a client left %d answers unread: %d requests were dropped, and it is told when it reads"
            logging.getLogger(__name__).warning(words, self._clients.high_water, len(lost))

    def _record_sent(self, step: RunStep) -> None:
        lane = int(any(sent.lane == 0 for sent in self._sent.values()))
        self._sent[step.number] = _Sent(time.monotonic_ns(), _step_name(step), lane)

    def _add_step_span(self, stepped: Stepped, now_ns: int) -> None:
        sent = self._sent.pop(stepped.number, None)
        if sent is not None:
            detail: dict[str, int | str] = {"step": stepped.number, "unit": stepped.unit, "rows": len(stepped.rows)}
            self._stage.add_span(sent.name, sent.at_ns, now_ns, sent.lane, detail)

    def _log_mode(self, now: SchedulerStatistics) -> None:
        """Log that the tuner has tried other modes, and the mode that it took."""
        if now.trials == self._logged_trials:
            return
        self._logged_trials = now.trials
        modes = {"units": now.units_wanted, "prediction": now.prediction_wanted, "regrouping": now.grouping_wanted}
        words = ", ".join(f"{name} {value}" for name, value in modes.items())
        logging.getLogger(__name__).info("tuner: %d trials of other modes so far; best: %s", now.trials, words)

    def _publish(self) -> None:
        facts = self._state.statistics()
        self._log_mode(facts)
        counters: dict[str, int | float] = {**asdict(facts), **self._state.ends, "dropped": self._clients.dropped}
        waiting_on = "compute" if facts.steps_in_flight else ""
        self._stage.publish(
            done=facts.done,
            queue=facts.queue,
            waiting_on=waiting_on,
            stalled_ns=self._stalled_ns,
            counters=counters,
            histograms=self._state.histograms,
        )
        if self._stage.watched:
            self._stage.report(self._state.open_requests(time.monotonic_ns()))


def _log_end(message: ToClient, tells_all: bool) -> None:
    """Log the end of a request. What an error says may quote the request."""
    log = logging.getLogger(__name__)
    match message:
        case Refused(request_id, error):
            log.info("request %s ended: %s%s", request_id, error.code, f": {error.what}" if tells_all else "")
        case Finished(request_id=request_id, finish_reason=reason, token_ids=ids):
            log.debug("request %s ended: %s, %d tokens", request_id, reason, len(ids))
            if tells_all:
                log.info("request %s: output %s", request_id, ids)


def model_info(survey: Survey) -> ModelInfo:
    """Return the facts of a surveyed model."""
    return ModelInfo(
        model=survey.folder,
        vocabulary=survey.vocabulary,
        context=survey.context,
        eos_ids=survey.eos_ids,
        first_token=survey.first_token,
        settings=survey.settings,
        decoder_start=survey.decoder_start,
        layers=survey.layers,
        experts=survey.experts,
        kv_bytes_per_position=survey.rows.kv_bytes_per_position,
    )


def scheduler_limits(config: Config) -> SchedulerLimits:
    """Return the limits of a configuration in which the supervisor has turned `kv_memory` into bytes."""
    return SchedulerLimits(
        batch_size=config.batch_size,
        prefill_tokens=config.prefill_tokens,
        prefill_chunk=config.prefill_chunk,
        prefix_cache=config.prefix_cache == "on" and not config.trace,  # a trace has every token of every prompt
        queue_limit=config.queue_limit,
        kv_bytes=parse_size(config.kv_memory, "kv_memory").of(0),
        units=config.units,
        prediction=config.prediction if config.predictor != "none" or config.hints != "off" else "on",
        grouping=config.grouping if config.predictor != "none" else "off",
        batch_invariant=config.batch_invariant,
        lockstep=not config.on_device,
    )


def _model_name(model: str) -> str:
    """Return a hub id as it is, and the last part of a path: others see it in metrics."""
    return Path(model).name if Path(model).exists() else model


def _step_name(step: RunStep) -> str:
    return "prefill" if step.admit or step.continues else "decode"


def _request_id(raw: bytes) -> str:
    """Return the request id in an unreadable message, "" if there is none."""
    message = decode(_ID_DECODER, raw)
    return "" if isinstance(message, Unreadable) else message.request_id
