"""Random histories: requests come, go and come back, compute steps, dies and returns, rows break, time passes."""

from __future__ import annotations

import random
from collections.abc import Callable

from expertflow.ipc.messages import NO_DETAILS, Details, Finished, Refused, Sampling
from expertflow.tests.scheduler.world import MS, Book, World, make_limits
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ComputeInfo
from hypothesis import strategies as st

Kinds = tuple[bool | None, ...]
ONE_KIND: Kinds = (None,)
BOTH_KINDS: Kinds = (None, True, False)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Every shape of batch, budget and model."""
    padding, moving = draw(st.booleans()), draw(st.booleans())
    facts = ComputeInfo(
        kv_bytes_per_position=10,
        kv_bytes_per_row=draw(st.sampled_from((0, 33))),
        padding=padding,
        moving=moving,
        extending=draw(st.booleans()),
        copying=draw(st.booleans()),
    )
    limits = make_limits(
        batch_size=draw(st.integers(1, 6)),
        prefill_tokens=draw(st.integers(1, 40)),
        queue_limit=draw(st.sampled_from((3, 100))),
        kv_bytes=draw(st.sampled_from((300, 700, 10_000))),
        units=draw(st.sampled_from(("one", "two", "auto", "three"))),
        prediction=draw(st.sampled_from(("on", "auto"))),
        grouping=draw(st.sampled_from(("off", "swap", "kmeans", "auto"))),
        gather_ns=draw(st.sampled_from((0, 3))),
        batch_invariant=draw(st.booleans()),
        prefill_chunk=draw(st.sampled_from((0, 1, 3, 5))),
        prefix_cache=draw(st.booleans()),
    )
    return World(limits, facts, context=draw(st.sampled_from((12, 40))))


class History:
    """Plays `turns` random turns on a world and lets it come to rest."""

    def __init__(self, world: World, seed: int, kinds: Kinds = ONE_KIND) -> None:
        """`kinds`: what its requests say of `batch_invariant`."""
        self.world, self.rng, self.kinds = world, random.Random(seed), kinds

    def play(self, turns: int) -> None:
        # Mostly progress: what is rare below must meet a scheduler in the middle of its work.
        menu: list[tuple[Callable[[], object], int]] = [
            (self.step, 40), (self.tick, 30), (self.submit, 20), (self.cancel, 3), (self.submit_again, 3),
            (self.kill, 2), (self.revive, 3), (self.break_row, 2), (self.lose_client, 1), (self.wait, 2),
            (self.answer, 30), (self.answer_badly, 3), (self.forget_questions, 3),
        ]  # fmt: skip
        choices, weights = [choice for choice, _ in menu], [weight for _, weight in menu]
        for choice in self.rng.choices(choices, weights, k=turns):
            choice()
        self.revive()
        self.world.run_until_idle()

    def submit(self) -> None:
        rng, world = self.rng, self.world
        for _ in range(rng.choice((1, 1, 2, 6))):
            sampling = Sampling(seed=rng.randrange(3))
            world.submit(
                self._prompt(),
                max_new_tokens=rng.randrange(0, 14),
                identity=rng.choice((b"a", b"b", b"c")),
                eos_ids=rng.choice((None, [], [1, 2, 3, 4])),
                deadline_ms=rng.choice((None, None, None, 2)),
                sampling=sampling,
                batch_invariant=rng.choice(self.kinds),
                details=rng.choice((NO_DETAILS, Details(logprobs=1), Details(0, 0, routed_experts=True))),
            )

    def _prompt(self) -> list[int]:
        """Short ones, which may begin alike."""
        begin = [7, 1, 8, 2, 9, 3, 6, 4, 5][: self.rng.choice((0, 0, 4, 5, 9))]
        return begin + [self.rng.randrange(50) for _ in range(self.rng.randrange(0, 16 - len(begin)))]

    def step(self) -> None:
        self.world.compute_step()

    def tick(self) -> None:
        self.world.tick()

    def wait(self) -> None:
        self.world.tick(MS)

    def answer(self) -> None:
        self.world.answer()

    def answer_badly(self) -> None:
        self.world.do(events.RowPredictionsReady(self.world.predictor.nonsense(self.rng.randrange(5))))

    def forget_questions(self) -> None:
        self.world.predictor.questions.clear()

    def cancel(self) -> None:
        if (book := self._some_book()) is not None:
            self.world.cancel(book)

    def submit_again(self) -> None:
        """Whatever has become of it; its client may have got a new identity."""
        if (book := self._some_book()) is not None and not book.may_be_lost:
            book.ends.clear()
            self.world.submit_again(book, self.rng.choice((None, b"a", b"d")))

    def kill(self) -> None:
        self.world.kill_compute(announced=self.rng.random() < 0.5)

    def revive(self) -> None:
        if self.world.compute is None:
            self.world.start_compute()

    def break_row(self) -> None:
        if self.world.compute and self.world.admitted:
            self.world.compute.fail_rows.add(self.rng.choice(self.world.admitted))

    def lose_client(self) -> None:
        self.world.lose_client(self.rng.choice((b"a", b"b", b"c")))

    def _some_book(self) -> Book | None:
        return self.rng.choice(list(self.world.books.values())) if self.world.books else None


def check_ends(world: World) -> None:
    """Each request ended exactly once, and with its own tokens, whatever it was batched with (I4)."""
    for name, book in world.books.items():
        assert len(book.ends) == 1 or (book.may_be_lost and not book.ends), f"{name} has ended {len(book.ends)} times"
        for end in book.ends:
            check_end(book, end)


def check_end(book: Book, end: Finished | Refused) -> None:
    if isinstance(end, Refused):
        assert end.error.code in ("request", "busy", "budget")
        return
    expected = book.expected()
    assert book.accepted >= 1
    assert end.token_ids == book.tokens == expected[: len(book.tokens)], "not the tokens of this request"
    if end.finish_reason in ("stop", "length"):
        assert book.tokens == expected


def check_leftovers(world: World) -> None:
    """Nothing is left in compute, and no memory reserved."""
    statistics = world.core.statistics()
    assert (statistics.queue, statistics.running, statistics.units, statistics.kv_reserved_bytes) == (0, 0, 0, 0)
    assert world.compute is not None and not world.compute.units and not world.waiting
