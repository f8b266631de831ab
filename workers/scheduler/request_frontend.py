"""Client side of the scheduler: accepts and refuses requests, delivers tokens, ends requests, repeats ends."""

from __future__ import annotations

from collections import Counter

import msgspec

from ...ipc.messages import (
    NEUTRAL,
    Accepted,
    ErrorFacts,
    Finished,
    GenerationSettings,
    Refused,
    RowDetails,
    Sampling,
    Submit,
    ToClient,
    TokenLogprob,
    Tokens,
)
from .events import SchedulerAction, Send
from .latencies import RequestLatencies
from .limits import ComputeInfo, ModelInfo, SchedulerLimits, make_welcome
from .request_details import RequestDetails
from .requests import RequestLedger, RequestState, submit_digest
from .validation import memory_error, positions_needed, request_error, submit_error, token_limit


class RequestFrontend:
    """Owner of the ledger of requests. Methods that answer a client return the actions that do so."""

    def __init__(self, model: ModelInfo, limits: SchedulerLimits, first_row: int) -> None:
        self.ledger = RequestLedger()
        self.compute: ComputeInfo | None = None
        self.accepting = True
        """False: only requests that an earlier scheduler had begun are accepted."""
        self.draining = False
        self.accepted = self.done = self.refused = self.abandoned = self.tokens = self.prompt_tokens = 0
        self.latencies = RequestLatencies()
        self.ends: Counter[str] = Counter()
        """Ended requests by 'finished_REASON' and 'error_CODE'."""
        self._model, self._limits, self._row = model, limits, first_row

    def welcome_client(self, identity: bytes) -> list[SchedulerAction]:
        """Answer a client's `Hello`."""
        return [Send(identity, make_welcome(self._model, self._limits))]

    def repeat(self, identity: bytes, submit: Submit) -> list[SchedulerAction] | None:
        """Answer a request that was submitted before with all its tokens and its end so far; None: it is new.

        A submission that arrives after a later one of its client has no answer: nobody is there to read it.
        """
        request = self.ledger.open.get(submit.request_id)
        ended = self.ledger.ended(submit.request_id)
        previous = request or ended
        if previous is None:
            return None
        if previous.digest != submit_digest(submit):
            return self.reject(identity, submit.request_id, _duplicate_id_error(submit.request_id))
        if request is not None and submit.is_late(request.origin, request.attempt):
            return []
        if request is not None:
            self.ledger.assign_client(request, identity, submit)
            return _resend(identity, request.request_id, request.tokens, request.details.logprobs)
        end = ended.end if ended else None
        tokens, logprobs = (end.token_ids, end.logprobs) if isinstance(end, Finished) else ([], [])
        return [*_resend(identity, submit.request_id, tokens, logprobs), *([Send(identity, end)] if end else [])]

    def accept(self, identity: bytes, submit: Submit, now_ns: int) -> tuple[RequestState, list[SchedulerAction]]:
        """Record a request that passed `check_submit`."""
        self._row += 1
        self.accepted += 1
        request = self._record(identity, submit, now_ns)
        self.ledger.add(request)
        return request, [Send(identity, Accepted(request.request_id))]

    def check_submit(self, submit: Submit, waiting: int) -> ErrorFacts | None:
        """Return why this request must be refused, or None. `waiting`: requests in the queue."""
        if self.draining:
            return ErrorFacts("engine", "the engine is stopping", "submit", "Start it again and submit once more")
        if not self.accepting and not submit.resume_ids:
            return ErrorFacts("engine", "the engine drains and accepts nothing new", "submit", "Submit it to another")
        error = submit_error(submit, self._model)
        if error is None and self._is_invariant(submit) and not self._limits.lockstep:
            remedy = "Leave it out, or use device = cpu"
            error = request_error("is possible on the CPU alone", "batch_invariant", remedy)
        if error is None and self.compute is not None:
            needed = positions_needed(len(submit.prompt_ids), submit.max_new_tokens, self._model.context)
            error = memory_error(needed, self.compute, self._limits.kv_bytes)
        if error is None and waiting >= self._limits.queue_limit:
            what = f"{waiting} requests are waiting, the limit is {self._limits.queue_limit}"
            return ErrorFacts("busy", what, "queue", "Submit again when some have finished, or raise queue_limit")
        return error

    def reject(self, identity: bytes, request_id: str, error: ErrorFacts) -> list[SchedulerAction]:
        """Refuse a request that was never accepted."""
        self.refused += 1
        self.ends[f"error_{error.code}"] += 1
        return [Send(identity, Refused(request_id, error))]

    def note_details(self, request: RequestState, found: RowDetails) -> None:
        """Record what a step found out about a request besides its token."""
        request.details.add(found, self._model.layers)

    def deliver(
        self, request: RequestState, token: int, now_ns: int, logprob: TokenLogprob | None = None
    ) -> list[SchedulerAction]:
        """Record a token and send it, with its logprob if there is one."""
        if request.first_token_ns is None:
            request.first_token_ns = now_ns
            self.prompt_tokens += len(request.prompt_ids)
        self.latencies.on_token(request, now_ns)
        offset = len(request.tokens)
        request.tokens.append(token)
        request.deaths = 0
        self.tokens += 1
        logprobs = [] if logprob is None else [logprob]
        request.details.logprobs += logprobs
        return [Send(request.identity, Tokens(request.request_id, offset, [token], logprobs))]

    def finish(self, request: RequestState, reason: str, now_ns: int) -> list[SchedulerAction]:
        """End an accepted request with its tokens and a finish reason."""
        prompt, details = len(request.prompt_ids), request.details
        positions = max(prompt, prompt + len(request.tokens) - 1)
        end = Finished(
            request_id=request.request_id,
            token_ids=request.tokens,
            finish_reason=reason,
            timings=request.timings(now_ns),
            logprobs=details.logprobs,
            prompt_logprobs=details.prompt_logprobs,
            routed_experts=details.routed_experts(positions, self._model.experts),
            cached_tokens=request.cached_tokens,
        )
        self.ends[f"finished_{reason}"] += 1
        self.latencies.on_finished(request, now_ns)
        return self._end(request, end)

    def fail(self, request: RequestState, error: ErrorFacts) -> list[SchedulerAction]:
        """End an accepted request with an error."""
        self.refused += 1
        self.ends[f"error_{error.code}"] += 1
        return self._end(request, Refused(request.request_id, error))

    def drop(self, request: RequestState) -> None:
        """Drop the request of a lost client silently; submitting its id again runs it again."""
        self.abandoned += 1
        self.ledger.drop(request)

    def budget_error(self, request: RequestState) -> ErrorFacts | None:
        """Return the error of a request that does not fit the KV budget of the present compute, or None."""
        return memory_error(request.positions, self.compute, self._limits.kv_bytes) if self.compute else None

    def _end(self, request: RequestState, end: Finished | Refused) -> list[SchedulerAction]:
        self.done += 1
        self.ledger.end(request, end)
        return [Send(request.identity, end)]

    def _record(self, identity: bytes, submit: Submit, now_ns: int) -> RequestState:
        prompt, context = len(submit.prompt_ids), self._model.context
        eos_ids = self._model.eos_ids if submit.eos_ids is None else submit.eos_ids
        stop_ids = (*eos_ids, *submit.stop_ids)
        sampling = self._resolve_sampling(submit.sampling)
        return RequestState(
            number=self._row,
            request_id=submit.request_id,
            identity=identity,
            digest=submit_digest(submit),
            prompt_ids=submit.prompt_ids,
            sampling=sampling,
            stop_ids=frozenset(stop_ids),
            token_limit=token_limit(prompt, submit.max_new_tokens, context),
            positions=positions_needed(prompt, submit.max_new_tokens, context),
            accepted_ns=now_ns,
            attachment=submit.attachment,
            settings=own_settings(self._model.settings, stop_ids, submit.max_new_tokens, sampling),
            batch_invariant=self._is_invariant(submit),
            priority=submit.priority,
            user=submit.user,
            origin=submit.origin,
            attempt=submit.attempt,
            details=RequestDetails(submit.details, prompt),
            tokens=list(submit.resume_ids),
            deadline_ns=None if submit.deadline_ms is None else now_ns + submit.deadline_ms * 1_000_000,
        )

    def _is_invariant(self, submit: Submit) -> bool:
        return self._limits.batch_invariant if submit.batch_invariant is None else submit.batch_invariant

    def _resolve_sampling(self, sampling: Sampling) -> Sampling:
        """Return `sampling`, with the model's first token where the request names none."""
        if sampling.first_token is not None or self._model.first_token is None:
            return sampling
        return msgspec.structs.replace(sampling, first_token=self._model.first_token)


def own_settings(
    model: GenerationSettings, stop_ids: tuple[int, ...], max_new_tokens: int, sampling: Sampling
) -> GenerationSettings:
    """Return the settings of a request: the model's, where the request does not say otherwise, with its own ends.

    A minimum of 0 lifts the model's own, which may also be a `min_length`.
    """
    changes: dict[str, object] = {}
    if sampling.repetition_penalty is not None:
        changes["repetition_penalty"] = sampling.repetition_penalty
    if sampling.min_new_tokens is not None:
        changes |= {"min_new_tokens": sampling.min_new_tokens or None, "min_length": 0}
    settings = msgspec.structs.replace(model, **changes)
    if settings == NEUTRAL and not sampling.grammar:  # which must know the ends
        return NEUTRAL
    first = settings.forced_bos_token_id if sampling.first_token is None else sampling.first_token
    return msgspec.structs.replace(settings, eos_ids=stop_ids, max_new_tokens=max_new_tokens, forced_bos_token_id=first)


def finish_reason(request: RequestState) -> str | None:
    """Return the finish reason that the last token causes, or None."""
    if request.tokens and request.tokens[-1] in request.stop_ids:
        return "stop"
    return "length" if len(request.tokens) >= request.token_limit else None


def _resend(identity: bytes, request_id: str, tokens: list[int], logprobs: list[TokenLogprob]) -> list[SchedulerAction]:
    messages: list[ToClient] = [Accepted(request_id)]
    if tokens:
        messages.append(Tokens(request_id, 0, list(tokens), list(logprobs)))
    return [Send(identity, message) for message in messages]


def _duplicate_id_error(request_id: str) -> ErrorFacts:
    remedy = "Give every request an id of its own, such as a UUID"
    return request_error(f"another request has the id '{request_id}'", "request_id", remedy)
