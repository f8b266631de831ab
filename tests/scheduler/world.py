"""A scheduler's core, a fake compute and clients that keep books; every action is checked as it happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
from expertflow.ipc.messages import (
    NO_DETAILS,
    Accepted,
    Cancel,
    Details,
    ErrorFacts,
    Finished,
    PredictRows,
    PredictStep,
    Refused,
    RunStep,
    Sampling,
    Submit,
    TokenLogprob,
    Tokens,
    Welcome,
)
from expertflow.ipc.messages.to_compute import ComputeFromScheduler
from expertflow.tests.scheduler.fake_compute import VOCABULARY, FakeCompute, continuation, logprob_of, routes_of
from expertflow.tests.scheduler.fake_predictor import EXPERTS, LAYERS, FakePredictor
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ComputeInfo, ModelInfo, SchedulerLimits
from expertflow.workers.scheduler.state import SchedulerState
from expertflow.workers.scheduler.validation import positions_needed

EOS = 7
MS = 1_000_000
STARTS_MEANWHILE = 2
"""Requests of any other client, all of the largest size, that may start while one waits for its turn."""


def model_facts(context: int = 64) -> ModelInfo:
    return ModelInfo(
        model="/models/fake",
        vocabulary=VOCABULARY,
        context=context,
        eos_ids=[EOS],
        layers=LAYERS,
        experts=EXPERTS,
        kv_bytes_per_position=10,
    )


def make_limits(
    batch_size: int = 4,
    prefill_tokens: int = 64,
    queue_limit: int = 100,
    kv_bytes: int = 10_000,
    units: str = "one",
    gather_ns: int = 0,
    prediction: str = "on",
    grouping: str = "off",
    batch_invariant: bool = False,
    lockstep: bool = True,
    prefill_chunk: int = 0,
    prefix_cache: bool = False,
) -> SchedulerLimits:
    return SchedulerLimits(
        batch_size=batch_size,
        prefill_tokens=prefill_tokens,
        queue_limit=queue_limit,
        kv_bytes=kv_bytes,
        units=units,
        prediction=prediction,
        grouping=grouping,
        batch_invariant=batch_invariant,
        lockstep=lockstep,
        prefill_chunk=prefill_chunk,
        prefix_cache=prefix_cache,
        gather_ns=gather_ns,
        gather_limit_ns=10 * gather_ns,
    )


@dataclass
class Book:
    """What one client saw of one request."""

    submit: Submit
    identity: bytes
    context: int = 64
    accepted: int = 0
    tokens: list[int] = field(default_factory=list)
    ends: list[Finished | Refused] = field(default_factory=list)
    may_be_lost: bool = False
    number: int = 0
    """Of its row, once accepted."""
    batch_invariant: bool = False
    moved: bool = False
    """Its client came back under another identity, which puts it behind what that one has in the queue."""

    def expected(self) -> list[int]:
        """Tokens of an undisturbed run."""
        stops = ({EOS} if self.submit.eos_ids is None else set(self.submit.eos_ids)) | set(self.submit.stop_ids)
        most = min(self.submit.max_new_tokens, self.context - len(self.submit.prompt_ids) + 1)
        tokens = continuation(self.submit.prompt_ids, most, self.submit.sampling)
        first_stop = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        return tokens[:first_stop]

    def take_tokens(self, message: Tokens) -> None:
        """New tokens follow without a gap, repeated ones are the same: what was delivered never changes."""
        known = self.tokens[message.offset : message.offset + len(message.token_ids)]
        assert message.offset <= len(self.tokens), "a gap in the tokens"
        assert message.token_ids[: len(known)] == known, "delivered tokens changed"
        self.tokens += message.token_ids[len(known) :]
        self.check_logprobs(message.logprobs, message.offset, message.token_ids)

    def check_logprobs(self, logprobs: list[TokenLogprob], offset: int, token_ids: list[int]) -> None:
        """Every token that no earlier scheduler delivered has its own."""
        start, prompt = max(offset, len(self.submit.resume_ids)), len(self.submit.prompt_ids)
        asked = self.submit.details.logprobs is not None
        fresh = list(enumerate(token_ids[start - offset :], prompt + start)) if asked else []
        assert logprobs == [logprob_of(token, position) for position, token in fresh]

    def check_end(self, end: Finished) -> None:
        """What a completion tells is about its own tokens, whatever died meanwhile."""
        prompt, asked = self.submit.prompt_ids, self.submit.details
        self.check_logprobs(end.logprobs, 0, end.token_ids)
        ran = end.finish_reason in ("stop", "length")
        if end.prompt_logprobs is not None or (ran and asked.prompt_logprobs is not None):
            assert end.prompt_logprobs == [None, *map(logprob_of, prompt[1:], range(1, len(prompt)))]
        if end.routed_experts is not None or (ran and asked.routed_experts):
            assert end.routed_experts is not None
            computed = [*prompt, *end.token_ids][: max(len(prompt), len(prompt) + len(end.token_ids) - 1)]
            if not ran:  # it may have ended while a chunk of its prompt was computed, or computed again
                computed = computed[: end.routed_experts.shape[0]]
            routes = np.frombuffer(end.routed_experts.data, end.routed_experts.dtype)
            assert (routes.reshape(end.routed_experts.shape) == routes_of(computed)).all()


class World:
    """Drive it by `receive`, `tick`, `compute_step`, `kill_compute`; `books` holds what clients saw."""

    def __init__(
        self,
        limits: SchedulerLimits | None = None,
        facts: ComputeInfo | None = None,
        context: int = 64,
        joined: bool = True,
    ) -> None:
        self.model = model_facts(context)
        self.limits = limits or make_limits()
        self.facts = facts or ComputeInfo(kv_bytes_per_position=10)
        self.now_ns = 1
        self.core = SchedulerState(self.model, self.limits)
        self.compute: FakeCompute | None = None
        self.predictor = FakePredictor()
        self.books: dict[str, Book] = {}
        self.welcomes: list[Welcome] = []
        self.strays: list[Refused] = []
        self.forecasts: dict[int, PredictStep] = {}
        self.admitted: list[int] = []
        self.waiting: dict[int, Book] = {}
        """Accepted and never started, by number."""
        self.overtaken: Counter[tuple[bytes, bytes]] = Counter()
        """(who waits, another) -> requests of the other that have started meanwhile."""
        self.kinds: dict[int, bool] = {}
        """Whether each accepted request is batch-invariant, by number."""
        self.last_number = -1
        self.chunks_since: Counter[int] = Counter()
        """Row -> steps with chunks of other rows' prompts since its last token."""
        self.newest = self.epoch = 0
        self._names = 0
        if joined:
            self.start_compute()

    # What happens

    def submit(
        self,
        prompt: list[int] | None = None,
        max_new_tokens: int = 5,
        identity: bytes = b"a",
        eos_ids: list[int] | None = None,
        deadline_ms: int | None = None,
        request_id: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        resume_ids: list[int] | None = None,
        batch_invariant: bool | None = None,
        stop_ids: list[int] | None = None,
        priority: int = 0,
        details: Details = NO_DETAILS,
    ) -> Book:
        """Send a new request."""
        self._names += 1
        submit = Submit(
            request_id=request_id or f"r{self._names}",
            prompt_ids=[1, 2, 3] if prompt is None else prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_ids=eos_ids,
            deadline_ms=deadline_ms,
            resume_ids=resume_ids or [],
            batch_invariant=batch_invariant,
            stop_ids=stop_ids or [],
            priority=priority,
            details=details,
        )
        book = Book(submit, identity, self.model.context, tokens=list(submit.resume_ids))
        book.batch_invariant = self.limits.batch_invariant if batch_invariant is None else batch_invariant
        self.books[submit.request_id] = book
        self.do(events.ClientMessage(identity, submit, self.now_ns))
        return book

    def submit_again(self, book: Book, identity: bytes | None = None, **attempt: str | int) -> None:
        book.moved |= identity not in (None, book.identity)
        book.identity = identity or book.identity
        self.do(events.ClientMessage(book.identity, msgspec.structs.replace(book.submit, **attempt), self.now_ns))

    def deliver_late(self, identity: bytes, book: Book, **attempt: str | int) -> None:
        """Deliver a submission that its client has repeated since: answers still go to the present identity."""
        self.do(events.ClientMessage(identity, msgspec.structs.replace(book.submit, **attempt), self.now_ns))

    def cancel(self, book: Book) -> None:
        self.do(events.ClientMessage(book.identity, Cancel(book.submit.request_id), self.now_ns))

    def lose_client(self, identity: bytes) -> None:
        for book in self.books.values():
            if book.identity == identity:
                book.may_be_lost = True
                self.waiting.pop(book.number, None)
        self.do(events.ClientLost(identity, self.now_ns))

    def start_compute(self) -> None:
        self.compute = FakeCompute(self.facts, self.limits.kv_bytes, last_number=self.last_number)
        facts: events.Facts = {
            "kv_bytes_per_position": self.facts.kv_bytes_per_position,
            "kv_bytes_per_row": self.facts.kv_bytes_per_row,
            "padding": int(self.facts.padding),
            "moving": int(self.facts.moving),
            "extending": int(self.facts.extending),
            "copying": int(self.facts.copying),
        }
        self.do(events.ComputeJoined(self.now_ns, facts))

    def kill_compute(self, announced: bool = True) -> None:
        if self.compute is not None:
            self.last_number = self.compute.last_number
        self.compute = None
        if announced:
            self.do(events.ComputeLost(self.now_ns))

    def tick(self, later_ns: int = 1) -> None:
        self.now_ns += later_ns
        self.do(events.Tick(self.now_ns))

    def compute_step(self) -> bool:
        """Let compute run one step; False if it has none."""
        stepped = self.compute.run_next() if self.compute else None
        if stepped is None or self.compute is None:
            return False
        self._check_ran(self.compute)
        self.now_ns += 1
        self.do(events.StepDone(stepped, self.now_ns))
        return True

    def answer(self) -> bool:
        """Let the predictor answer its oldest question; False if there is none."""
        answer = self.predictor.answer()
        if answer is not None:
            self.do(events.RowPredictionsReady(answer))
        return answer is not None

    @property
    def open_requests(self) -> int:
        """Requests that were accepted and have neither ended nor been dropped."""
        statistics = self.core.statistics()
        return statistics.accepted - statistics.done - statistics.abandoned

    def run_until_idle(self, most_turns: int = 20_000) -> None:
        for _ in range(most_turns):
            self.tick()
            if not self.compute_step() and not self.open_requests:
                self.tick()
                if self.compute:
                    self.compute.run_next()
                return
        raise AssertionError(f"not idle after {most_turns} turns: {self.core.statistics()}")

    def do(self, event: events.SchedulerEvent) -> None:
        for action in self.core.handle(event):
            match action:
                case events.Send(identity, message):
                    self._to_client(identity, message)
                case events.ToPredictor(PredictStep() as forecast):
                    self.forecasts[forecast.step] = forecast
                    self._check_questions(forecast)
                case events.ToPredictor(PredictRows() as question):
                    self.predictor.receive(question)
                case events.ToCompute(message):
                    self._to_compute(message)
        self._forget_who_waits_no_longer()
        statistics = self.core.statistics()
        assert statistics.kv_reserved_bytes + statistics.kv_prefix_bytes <= self.limits.kv_bytes
        assert statistics.running <= self.limits.batch_size

    # What is checked

    def _to_client(self, identity: bytes, message: object) -> None:
        match message:
            case Welcome():
                self.welcomes.append(message)
            case Accepted(request_id):
                self._on_accepted(self.books[request_id])
            case Tokens(request_id):
                book = self.books[request_id]
                assert identity == book.identity and not (book.ends and message.offset + 1 > len(book.tokens))
                book.take_tokens(message)
            case Finished():
                book = self.books[message.request_id]
                assert message.token_ids[: len(book.tokens)] == book.tokens
                book.check_end(message)
                book.ends.append(message)
                self.waiting.pop(book.number, None)
            case Refused("", _):
                self.strays.append(message)
            case Refused(request_id, _):
                self.books[request_id].ends.append(message)
                self.waiting.pop(self.books[request_id].number, None)
            case _:
                raise AssertionError(message)

    def _on_accepted(self, book: Book) -> None:
        """Rows are numbered as requests are accepted; a request that is known already keeps its number."""
        book.accepted += 1
        newest = (self.epoch << 32) + self.core.statistics().accepted
        if newest > self.newest:
            self.newest = book.number = newest
            self.kinds[newest] = book.batch_invariant
            self.waiting[newest] = book

    def _to_compute(self, message: ComputeFromScheduler) -> None:
        if isinstance(message, RunStep):
            assert (message.number in self.forecasts) == message.predict, "a forecast must go ahead where it is wanted"
            assert message.predict or not message.admit
            self._check_admission(message)
        if self.compute is not None:
            self.compute.receive(message)
            assert self.compute.steps_waiting <= 2, "more than two steps in flight"

    def _check_questions(self, forecast: PredictStep) -> None:
        for row, position, token in zip(forecast.rows, forecast.positions, forecast.token_ids, strict=True):
            assert self.predictor.asked.get((row, position), token) == token, "asked about another token"

    def _check_admission(self, step: RunStep) -> None:
        widths = [len(row.token_ids) - row.cached for row in step.admit]
        self._check_chunks(step)
        assert {self.kinds[row.number] for row in step.admit} <= {step.batch_invariant}, "a row of the other kind"
        if len(widths) > 1:
            positions = sum(widths) if step.batch_invariant else len(widths) * max(widths)
            assert positions <= self.limits.prefill_tokens, "too large a prefill"
        for row in step.admit:
            if row.number not in self.admitted:
                self.admitted.append(row.number)
                # Else only requests as long as the head of the line, or of its kind, may go with it.
                if self.facts.padding and len(set(self.kinds.values())) == 1:
                    self._check_turn(self.waiting[row.number])
                del self.waiting[row.number]

    def _check_chunks(self, step: RunStep) -> None:
        possible = self.limits.prefill_chunk if self.facts.extending else 0
        assert all(row.chunk == possible for row in step.admit)
        rows = [row for row in step.admit if not row.details.of_prompt]
        pending = {row.number: row.cached + row.generated * step.batch_invariant for row in rows}
        longest = max((len(row.token_ids) - pending[row.number] for row in rows), default=0)
        assert len(step.admit) < 2 or not possible or longest <= possible, "a long prompt must be prefilled alone"

    def _check_turn(self, starting: Book) -> None:
        """First come, first served among the requests of a client; its turn comes soon, however many others have."""
        mine, number = starting.identity, starting.number
        ahead = [book.number for book in self.waiting.values() if book.identity == mine and not book.moved]
        assert starting.moved or min(ahead) == number, "overtaken by a later request of the same client"
        for other in {book.identity for book in self.waiting.values()} - {mine}:
            self.overtaken[other, mine] += self._positions(starting)
            largest = max(map(self._positions, self.books.values()))
            assert self.overtaken[other, mine] <= STARTS_MEANWHILE * largest, f"{mine} had {other}'s turn"
        for pair in [pair for pair in self.overtaken if pair[0] == mine]:
            del self.overtaken[pair]

    def _positions(self, book: Book) -> int:
        submit = book.submit
        return positions_needed(len(submit.prompt_ids), submit.max_new_tokens, self.model.context)

    def _forget_who_waits_no_longer(self) -> None:
        if self.overtaken:
            waiting = {book.identity for book in self.waiting.values()}
            for pair in [pair for pair in self.overtaken if pair[0] not in waiting]:
                del self.overtaken[pair]

    def _check_ran(self, compute: FakeCompute) -> None:
        ran = compute.ran[-1]
        if ran.step.predict:
            forecast = self.forecasts[ran.step.number]
            said = Counter(zip(forecast.rows, forecast.positions, forecast.token_ids, strict=True))
            assert said == Counter(zip(ran.rows, ran.positions, ran.token_ids, strict=True)), "the forecast was wrong"
        assert len(set(ran.rows)) <= self.limits.batch_size
        self._check_pauses(ran.step, compute)

    def _check_pauses(self, step: RunStep, compute: FakeCompute) -> None:
        """Rows that decode wait for one chunk of another's prompt at most (until their unit is split or moved)."""
        unit = compute.units[step.unit]
        for row in unit.rows:
            self.chunks_since[row.number] = 0
        if not unit.filled or not (step.admit or step.continues):
            return
        for other in compute.units.values():
            for row in other.live() if other is not unit else ():
                self.chunks_since[row.number] += row.number in self.running
                assert self.chunks_since[row.number] <= 1, "two chunks in a row, and rows that could decode"

    @property
    def running(self) -> set[int]:
        """Numbers of the rows that the scheduler wants to go on."""
        return {number for unit in self.core._stepper.active for number in unit.rows}


def finished(book: Book) -> Finished:
    """Its one end, a completion."""
    assert len(book.ends) == 1
    assert isinstance(book.ends[0], Finished), book.ends
    return book.ends[0]


def refusal(book: Book) -> ErrorFacts:
    """Its one end, an error."""
    assert len(book.ends) == 1
    assert isinstance(book.ends[0], Refused), book.ends
    return book.ends[0].error
