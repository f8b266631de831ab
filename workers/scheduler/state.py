"""The scheduler's core: client messages and finished steps in, replies and steps out. No socket, clock or process.

Every request that was accepted ends in exactly one `Finished` or `Refused` (I4). Steps are sent on `Tick` alone, so
that all messages at hand are handled before a batch is chosen.
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import asdict

from ...ipc.messages import Cancel, FromClient, Hello, HistogramCounts, OpenRequests, Stepped, Submit, TokenLogprob
from . import events
from .admission import Room
from .events import SchedulerAction, SchedulerEvent
from .limits import (
    ComputeInfo,
    DecodeCounts,
    ModelInfo,
    SchedulerLimits,
    SchedulerStatistics,
    compute_info,
    shrink_limits,
)
from .mode_tuner import ModeChoices, ModeTuner
from .prediction_requests import PredictionRequests
from .prefills import Prefills
from .prefixes import PrefixIndex
from .regrouping import Regrouper
from .request_frontend import RequestFrontend, finish_reason
from .requests import RequestState, list_open
from .row_predictions import RowPredictionCache
from .stepper import Stepper
from .units import reserved_bytes
from .validation import crash_error, stopping_error, unreadable_error
from .waiting_queue import WaitingQueue

MAX_DEATHS = 3


class SchedulerState:
    """Core of the scheduler: `handle` takes each event; the caller performs the returned actions in order."""

    def __init__(self, model: ModelInfo, limits: SchedulerLimits, epoch: int = 0) -> None:
        self._model, self._limits = model, limits
        self._frontend = RequestFrontend(model, limits, first_row=epoch << 32)
        self._waiting = WaitingQueue[RequestState]()
        prediction_requests = PredictionRequests(model.decoder_start)
        self._stepper = Stepper(epoch << 32, prediction_requests)
        self._tuner = ModeTuner(ModeChoices(limits.units, limits.prediction, limits.grouping))
        row_predictions = RowPredictionCache(model.layers, model.experts, epoch << 32, prediction_requests)
        self._regrouper = Regrouper(self._stepper, limits.grouping, row_predictions, epoch << 32)
        self._prefixes = PrefixIndex(epoch << 32, limits.prefill_chunk)
        self._prefills = Prefills(self._waiting, self._stepper, self._prefixes)
        self._steps = self._stale_steps = self._recomputed = 0
        self._decoded = DecodeCounts()

    def handle(self, event: SchedulerEvent) -> list[SchedulerAction]:
        """Return the actions that one event causes, in order."""
        match event:
            case events.ClientMessage():
                return self._receive(event.identity, event.message, event.now_ns)
            case events.StepDone():
                return self._step_done(event.stepped, event.now_ns)
            case events.RowPredictionsReady():
                self._regrouper.on_row_predictions(event.row_predictions)
                return []
            case events.Tick():
                return self._tick(event.now_ns)
            case events.ComputeJoined():
                return self._compute_joined(event)
            case events.ComputeLost():
                return self._compute_lost()
            case events.ClientLost():
                return self._client_lost(event.identity)
            case events.Unreadable():
                return self._frontend.reject(event.identity, event.request_id, unreadable_error(event.what))
            case events.Draining():
                return self._drain()
            case events.IntakeClosed():
                self._frontend.accepting = False
                return []

    def wake_at_ns(self, now_ns: int) -> int | None:
        """Return when the next `Tick` is due without any event, in monotonic ns; None: only after an event."""
        times = [self._frontend.ledger.next_deadline_ns(), self._regrouper.wait_until_ns]
        if (compute := self._frontend.compute) is not None:
            times.append(self._prefills.wait_until_ns(self._room(compute)))
        return min((time for time in times if time is not None and time > now_ns), default=None)

    def statistics(self) -> SchedulerStatistics:
        """Return levels and counters as published."""
        compute, frontend = self._frontend.compute, self._frontend
        units = list(self._stepper.units.values())
        return SchedulerStatistics(
            queue=len(self._waiting),
            running=self._stepper.row_count,
            units=len(units),
            units_wanted=self._tuner.best.units,
            prediction_wanted=int(self._tuner.best.prediction),
            grouping_wanted=int(self._tuner.best.grouping),
            trials=self._tuner.trials,
            regroupings=self._regrouper.regroupings,
            rows_moved=self._regrouper.rows_moved,
            unpredicted=self._regrouper.unpredicted,
            invalid_answers=self._regrouper.rejected,
            steps_in_flight=self._stepper.steps_in_flight,
            kv_reserved_bytes=reserved_bytes(units, compute) if compute else 0,
            kv_prefix_bytes=self._prefixes.positions * compute.kv_bytes_per_position if compute else 0,
            prefix_queries=self._prefixes.queries,
            prefix_hits=self._prefixes.hits,
            prefix_tokens=self._prefixes.hit_tokens,
            accepting=int(frontend.accepting),
            open=len(frontend.ledger.open),
            accepted=frontend.accepted,
            oldest_waiting_ns=self._waiting.oldest_ns,
            prompt_tokens=frontend.prompt_tokens,
            done=frontend.done,
            refused=frontend.refused,
            abandoned=frontend.abandoned,
            tokens=frontend.tokens,
            steps=self._steps,
            stale_steps=self._stale_steps,
            recomputed=self._recomputed,
            **asdict(self._decoded),
        )

    def open_requests(self, now_ns: int) -> OpenRequests:
        """Return the open requests as watchers see them."""
        return list_open(self._frontend.ledger.open.values(), now_ns)

    def open_ids(self, identity: bytes) -> list[str]:
        """Return the ids of a client's open requests."""
        return [request.request_id for request in self._frontend.ledger.requests_of(identity)]

    @property
    def ends(self) -> dict[str, int]:
        """Return how requests ended, by 'finished_REASON' and 'error_CODE'."""
        return dict(self._frontend.ends)

    @property
    def histograms(self) -> dict[str, HistogramCounts]:
        """Return the times of requests."""
        return self._frontend.latencies.counts()

    def _receive(self, identity: bytes, message: FromClient, now_ns: int) -> list[SchedulerAction]:
        match message:
            case Submit():
                return self._submit(identity, message, now_ns)
            case Cancel(request_id):
                return self._cancel(identity, request_id, now_ns)
            case Hello():
                return self._frontend.welcome_client(identity)

    def _submit(self, identity: bytes, submit: Submit, now_ns: int) -> list[SchedulerAction]:
        if (answer := self._frontend.repeat(identity, submit)) is not None:
            if (request := self._frontend.ledger.open.get(submit.request_id)) is not None:
                self._waiting.follow(request)
            return answer
        if (error := self._frontend.check_submit(submit, len(self._waiting))) is not None:
            return self._frontend.reject(identity, submit.request_id, error)
        request, actions = self._frontend.accept(identity, submit, now_ns)
        if (reason := finish_reason(request)) is not None:  # resumed with its whole output, or none is asked for
            if not request.details.missing:
                return actions + self._frontend.finish(request, reason, now_ns)
            request.whole = True
        self._waiting.join(request)
        self._prefills.last_arrival_ns = now_ns
        return actions

    def _cancel(self, identity: bytes, request_id: str, now_ns: int) -> list[SchedulerAction]:
        request = self._frontend.ledger.open.get(request_id)
        if request is None or request.identity != identity:
            return []  # it has ended, which its client knows, or it is another client's
        return self._finish(request, "cancelled", now_ns)

    def _step_done(self, stepped: Stepped, now_ns: int) -> list[SchedulerAction]:
        outcome = self._stepper.finish(stepped)
        if outcome is None:
            self._stale_steps += 1
            return []
        self._steps += 1
        if stepped.at_most is not None:
            self._limits = shrink_limits(self._limits, stepped.at_most, outcome.was_prefill)
        if outcome.was_prefill:
            self._tuner.on_interruption()
        else:
            self._decoded.add(stepped)
            self._tuner.on_decode_step(now_ns, len(outcome.tokens), stepped.stall_ns, self._stepper.row_count)
        for request, found in outcome.details:
            self._frontend.note_details(request, found)
        actions: list[SchedulerAction] = []
        for request, token in outcome.tokens:
            found = stepped.details.get(request.number)
            actions += self._advance(request, token, found and found.logprob, outcome.was_prefill, now_ns)
        for request, error in outcome.failed:
            actions += self._frontend.fail(request, error)
        return actions + self._regrouper.on_step_done(outcome, stepped, self._tuner.wanted)

    def _advance(
        self, request: RequestState, token: int, logprob: TokenLogprob | None, was_prefill: bool, now_ns: int
    ) -> list[SchedulerAction]:
        """Take in the new token of a request; that of a whole output is there already."""
        actions = [] if request.whole else self._frontend.deliver(request, token, now_ns, logprob)
        reason = finish_reason(request)
        if (was_prefill or reason is not None) and (compute := self._frontend.compute) is not None:
            actions += self._prefills.keep_prefix(request, self._room(compute))
        return actions if reason is None else actions + self._finish(request, reason, now_ns)

    def _finish(self, request: RequestState, reason: str, now_ns: int) -> list[SchedulerAction]:
        self._remove(request)
        return self._frontend.finish(request, reason, now_ns)

    def _remove(self, request: RequestState) -> None:
        """Remove a request from the queue or from compute."""
        self._waiting.leave(request)
        self._stepper.leave(request)

    def _client_lost(self, identity: bytes) -> list[SchedulerAction]:
        for request in self._frontend.ledger.requests_of(identity):
            self._remove(request)
            self._frontend.drop(request)
        return []

    def _compute_joined(self, event: events.ComputeJoined) -> list[SchedulerAction]:
        """Take over a new compute; the death of the old one may never have been reported."""
        self._frontend.compute = compute_info(event.facts, self._model)
        self._tuner.resident = self._frontend.compute.resident
        self._prefixes.enabled = self._limits.prefix_cache and self._frontend.compute.can_copy
        actions = self._requeue_all()
        misfits = [(request, self._frontend.budget_error(request)) for request in self._waiting]
        for request, error in misfits:
            if error is not None:
                self._remove(request)
                actions += self._frontend.fail(request, error)
        return actions

    def _compute_lost(self) -> list[SchedulerAction]:
        self._frontend.compute = None
        return self._requeue_all()

    def _requeue_all(self) -> list[SchedulerAction]:
        """Return all rows of a lost compute to the front of the queue, with the tokens that they have.

        A request whose step was in flight when compute died runs alone next time. After `MAX_DEATHS` such deaths in a
        row it is refused, so that one request cannot take the engine down.
        """
        lost, suspects = self._stepper.drop_all()
        for request in lost:
            request.recomputed += 1
        for request in suspects:
            request.deaths += 1
        self._recomputed += len(lost)
        self._prefills.in_a_row = 0
        self._prefixes.clear()
        self._tuner.on_interruption()
        self._regrouper.on_compute_lost()
        self._waiting.put_back([request for request in lost if request.deaths < MAX_DEATHS])
        refused = [request for request in suspects if request.deaths >= MAX_DEATHS]
        return [action for request in refused for action in self._frontend.fail(request, crash_error(MAX_DEATHS))]

    def _drain(self) -> list[SchedulerAction]:
        self._frontend.draining = True
        actions: list[SchedulerAction] = []
        for request in list(self._frontend.ledger.open.values()):
            self._remove(request)
            actions += self._frontend.fail(request, stopping_error())
        return actions

    def _tick(self, now_ns: int) -> list[SchedulerAction]:
        actions: list[SchedulerAction] = []
        for request in self._frontend.ledger.overdue(now_ns):
            actions += self._finish(request, "deadline", now_ns)
        actions += self._stepper.drop_empty_units()
        while not self._stepper.full and (step := self._next_step(now_ns)):
            actions += step
        return actions

    def _next_step(self, now_ns: int) -> list[SchedulerAction]:
        compute = self._frontend.compute
        if compute is None or self._stepper.running_suspect:
            return []
        decode = partial(self._decode, compute, now_ns)
        prefill = partial(self._prefills.next, self._room(compute), now_ns)
        if not self._prefills.owe_decode:
            return prefill() or decode()
        return decode() or ([] if self._regrouper.wait_until_ns or self._stepper.steps_in_flight else prefill())

    def _decode(self, compute: ComputeInfo, now_ns: int) -> list[SchedulerAction]:
        actions = self._regrouper.decode(self._tuner.wanted, compute, now_ns)
        if actions:
            self._prefills.in_a_row = 0
        return actions

    def _room(self, compute: ComputeInfo) -> Room:
        return Room(self._limits, compute, list(self._stepper.units.values()), self._prefixes)
