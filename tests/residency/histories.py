"""Random histories for hypothesis: what the model uses, and an order in which things happen, die or lie."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from expertflow.ipc.messages import Hint, Miss, Released, ResidentTable, StepPrediction, StepRouting
from expertflow.tests.residency.world import Shape, World
from expertflow.workers.compute.experts.holdings import Holdings
from expertflow.workers.loader.ledger import Ledger
from hypothesis import strategies as st

MISCHIEF = 40
"""A byte from here on lets something happen that could happen anyway; those below do something out of the ordinary."""


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """From one slot to more than there are experts."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    top_k = draw(st.integers(1, min(3, experts)))
    slots = draw(st.integers(1, layers * experts + 1))
    by_layer = slots >= layers and draw(st.booleans())
    rank_victims = draw(st.sampled_from(("auto", "always", "never")))
    in_flight, volatile, spare = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.integers(0, 2))
    return Shape(slots, layers, experts, top_k, in_flight, by_layer, rank_victims, volatile, spare)


@st.composite
def programs(draw: st.DrawFn, shape: Shape) -> list[list[list[int]]]:
    """Up to four steps; two units taking turns look just like this to the cores."""
    steps = draw(st.integers(1, 4))
    layer = st.lists(st.integers(0, shape.experts - 1), min_size=1, max_size=shape.experts, unique=True)
    step = st.lists(layer, min_size=shape.layers, max_size=shape.layers)
    return draw(st.lists(step, min_size=steps, max_size=steps))


@st.composite
def histories(draw: st.DrawFn, most_turns: int) -> bytes:
    """Bytes for `play`. Drawn by a seed: hypothesis' own byte strings are a few turns long at best."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    turns, calm = draw(st.integers(0, most_turns)), draw(st.sampled_from((0.0, 0.5, 0.8, 0.95, 1.0)))
    history = bytearray(rng.randbytes(2 * turns))
    for index in range(0, len(history), 2):
        if history[index] < MISCHIEF and rng.random() < calm:
            history[index] += MISCHIEF
    return bytes(history)


def make_ledger(shape: Shape) -> Ledger:
    return Ledger(
        shape.slots,
        shape.layers,
        shape.experts,
        shape.top_k,
        fills_in_flight=shape.fills_in_flight,
        by_layer=shape.by_layer,
        rank_victims=shape.rank_victims,
        volatile=shape.volatile,
        spare_slots=shape.spare_slots,
    )


def make_holdings(shape: Shape) -> Holdings:
    return Holdings(shape.slots, shape.layers, shape.experts)


@st.composite
def worlds(
    draw: st.DrawFn,
    ledger: Callable[[Shape], Ledger] = make_ledger,
    holdings: Callable[[Shape], Holdings] = make_holdings,
) -> World:
    shape = draw(shapes())
    return World(shape, draw(programs(shape)), ledger, holdings)


def play(world: World, history: bytes) -> None:
    """Two bytes a turn: what happens, and to which of several. Then everything settles."""
    for what, which in zip(history[::2], history[1::2], strict=False):
        if what < MISCHIEF:
            _do_mischief(world, what, which)
            continue
        actions = world.enabled()
        if actions:
            world.perform(actions[what % len(actions)], which)
    world.settle()


def _do_mischief(world: World, what: int, which: int) -> None:
    mischief: tuple[Callable[[World, int], None], ...] = (
        _kill_loader,
        _kill_compute,
        _fail,
        _lie,
        _lie_nearby,
        _foresee,
        _foresee_nearby,
        _babble,
    )
    mischief[what % len(mischief)](world, which)


def _kill_loader(world: World, which: int) -> None:
    world.kill_loader()


def _kill_compute(world: World, which: int) -> None:
    if not world.finished:
        world.kill_compute()


def _fail(world: World, which: int) -> None:
    world.perform("fill fails", which)


def _lie(world: World, which: int) -> None:
    """Noise for a step near or far, now and then of the wrong length."""
    rng = random.Random(which)
    length = world.shape.layers * world.shape.experts + rng.choice((0, 0, 0, 0, -1, 3))
    step = rng.choice((world.number, world.number, world.number + 1, world.number + 2, -1, 0, (1 << 40) - 1, 1 << 62))
    world.advise(StepPrediction(step, rng.randbytes(max(length, 0))))


def _foresee(world: World, which: int) -> None:
    """The truth about the current step or a coming one."""
    ahead = which % 3
    steps = world.program[world.done_steps + ahead :]
    if steps:
        world.advise(StepPrediction(world.number + ahead, truth(world.shape, steps[0])))


def _lie_nearby(world: World, which: int) -> None:
    """A hint for some layer, sensible or not."""
    rng = random.Random(which)
    length = world.shape.experts + rng.choice((0, 0, 0, 0, -1, 3))
    layer = rng.choice((world.next_layer, world.next_layer + 1, -1, 0, 1 << 40))
    world.advise(Hint(rng.choice((world.number, world.number + 1, -1, 1 << 62)), layer, rng.randbytes(length)))


def _foresee_nearby(world: World, which: int) -> None:
    """The truth about the next layer, as far as the low bits of `which` do not hide it."""
    if not world.finished and world.next_layer < world.shape.layers:
        used = world.program[world.done_steps][world.next_layer]
        scores = bytes(255 * (expert in used and not which >> expert & 1) for expert in range(world.shape.experts))
        world.advise(Hint(world.number, world.next_layer, scores))


def truth(shape: Shape, step: list[list[int]]) -> bytes:
    return bytes(255 * (expert in used) for used in step for expert in range(shape.experts))


def _babble(world: World, which: int) -> None:
    """Messages that say nothing, which neither core may act upon."""
    far = 1 << 20
    nothing = {"token_ids": [1], "rows": [1], "positions": [1], "top_k": 1, "hits": 0, "misses": 0, "stall_ns": 0}
    babble: tuple[Any, ...] = (
        Released([far, -1], -1, -1),
        Released([], world.number, far),
        Miss(-1, 0, [0]),
        Miss(world.number, far, [0]),
        Miss(1 << 62, 0, [0]),
        Miss(-1, 0, [], [far, -1]),
        Released([], 1 << 62, 0),
        StepRouting(step=world.number, experts=b"abc", **nothing),
        StepRouting(step=-1, experts=bytes(2 * world.shape.layers), **nothing),
        StepRouting(step=1 << 62, experts=bytes(2 * world.shape.layers), **nothing),
        StepRouting(step=world.number + 2, experts=bytes(2 * world.shape.layers), **nothing),
        ResidentTable({}) if world.loader_knows and world.ledger.statistics().held else Released([far], -1, -1),
    )
    world.tell_ledger(babble[which % len(babble)])
