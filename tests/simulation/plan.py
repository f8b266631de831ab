"""What one history is given: sizes, options, requests of clients, faults with their times. All drawn from a seed."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from expertflow.configs.schema import Config
from expertflow.ipc.messages import NEUTRAL, Sampling, Submit
from expertflow.workers.checkpoint.survey import RowFacts, Survey

STAGES = ("compute", "loader", "predictor", "scheduler")
LINKS = ("compute-loader", "compute-scheduler", "loader-predictor", "predictor-scheduler")
EOS = 7
CONTEXT = 40
HANG_S = 4
"""A stage hangs if it does nothing for so long; less than the watchdog's own `MAX_CHECK_GAP_S`."""
START_S = 4
RESTART_LIMIT = 4
FAULTS_END_US = 2_500_000


class PlannedRequest(msgspec.Struct, frozen=True):
    """One request of a client, and what its client does to it."""

    name: str
    client: str
    at_us: int
    prompt: list[int]
    max_new_tokens: int
    seed: int = 0
    deadline_ms: int | None = None
    batch_invariant: bool = False
    priority: int = 0
    cancel_us: int = 0
    """Time at which the client cancels it; 0: never."""

    def submit(self) -> Submit:
        """Return the message that asks for it."""
        return Submit(
            request_id=self.name,
            prompt_ids=self.prompt,
            max_new_tokens=self.max_new_tokens,
            sampling=Sampling(seed=self.seed),
            deadline_ms=self.deadline_ms,
            batch_invariant=self.batch_invariant,
            priority=self.priority,
        )


class Fault(msgspec.Struct, frozen=True):
    """One fault. `draw` decides what of it is open, such as how many messages under way are lost."""

    at_us: int
    kind: str
    target: str
    draw: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a history depends on besides the order and the times of its events."""

    seed: int
    layers: int
    experts: int
    top_k: int
    slots: int
    forecaster: str
    """`none`, `truth`, `noise` or `previous`."""
    hints: str
    """`none`, `truth` or `noise`: what compute says of the next layer."""
    together: int
    """Experts below this number share a kernel call."""
    tail: float
    """Share of the delays that are a hundred times the others."""
    options: dict[str, Any]
    """Options of the engine besides those that all histories share."""
    padding: bool
    moving: bool
    extending: bool
    copying: bool
    read_factor: int = 1
    """Time of a read, as a multiple of the usual one; above 1 no read is later than that."""
    chunk: int
    """`prefill_chunk`, which the configuration allows to be a multiple of 32 only."""
    stall_ns: int
    """What each step says of its waits: above 0 the tuner tries other modes."""
    requests: list[PlannedRequest]
    faults: list[Fault]

    def config(self) -> Config:
        """Return the configuration of the engine."""
        return Config(
            model="simulated", kv_memory="7000B", hang_timeout_s=HANG_S, start_timeout_s=START_S,
            restart_limit=RESTART_LIMIT, hints="off", **self.options,
        )  # fmt: skip

    def survey(self) -> Survey:
        """Return the survey of a model that does not exist."""
        rows = RowFacts(
            kv_bytes_per_position=10, padding=self.padding, moving=self.moving, extending=self.extending,
            copying=self.copying,
        )  # fmt: skip
        return Survey(
            folder="simulated", model_type="fake", architecture="Fake", dtype="float32", vocabulary=50, context=CONTEXT,
            eos_ids=[EOS], layers=self.layers, experts=self.experts, top_k=self.top_k, module_names=[],
            skeleton_bytes=0, checkpoint_bytes=0, rows=rows, files=[], tensors=[], pieces=[], places=b"",
            stride_bytes=1, block_bytes=1, settings=NEUTRAL,
        )  # fmt: skip


def draw_plan(seed: int) -> Plan:
    """Return the plan of a seed."""
    rng = random.Random(seed)
    layers, experts = rng.choice((1, 1, 2, 2, 3)), rng.randint(2, 4)
    slots = rng.choice((1, 2, 3, 4, layers * experts))
    moving = rng.random() < 0.85
    return Plan(
        seed=seed,
        layers=layers,
        experts=experts,
        top_k=rng.randint(1, min(2, experts)),
        slots=min(slots, layers * experts),
        forecaster=rng.choice(("none", "truth", "truth", "noise", "previous")),
        hints=rng.choice(("none", "truth", "noise")) if slots < layers * experts else "none",
        together=rng.choice((0, 0, 2, 4)),
        tail=rng.choice((0.0, 0.02, 0.1)),
        options=_draw_options(rng, slots >= layers),
        padding=rng.random() < 0.8,
        moving=moving,
        extending=rng.random() < 0.8,
        copying=rng.random() < 0.8,
        read_factor=rng.choice((1, 1, 1, 20)),
        chunk=rng.choice((0, 0, 2, 5)),
        stall_ns=rng.choice((0, 500)),
        requests=_draw_requests(rng),
        faults=sorted([*_draw_faults(rng), *_draw_cuts(seed)], key=lambda fault: fault.at_us),
    )


def _draw_options(rng: random.Random, may_share_by_layer: bool) -> dict[str, Any]:
    return {
        "batch_size": rng.randint(1, 4),
        "prefill_tokens": rng.choice((4, 12, 40)),
        "prefix_cache": rng.choice(("on", "off")),
        "queue_limit": rng.choice((2, 100, 100)),
        "units": rng.choice(("one", "two", "auto")),
        "grouping": rng.choice(("off", "swap", "auto")),
        "reads_in_flight": rng.randint(1, 2),
        "slot_sharing": rng.choice(("pool", "pool", "layer")) if may_share_by_layer else "pool",
        "layer_loads": rng.choice(("needed", "needed", "needed", "whole")),
        "rank_victims": rng.choice(("auto", "always", "never")),
        "policy": rng.choice(("popularity", "lru")),
    }


def _draw_requests(rng: random.Random) -> list[PlannedRequest]:
    """Return requests of the first seconds; now and then one more after an idle time."""
    count = rng.choice((1, 2, 3, 3, 4, 6))
    requests = [_draw_request(rng, number) for number in range(1, count + 1)]
    if rng.random() < 0.06:
        requests[-1] = msgspec.structs.replace(requests[-1], at_us=6_500_000, cancel_us=0)
    return requests


def _draw_request(rng: random.Random, number: int) -> PlannedRequest:
    at_us = rng.randrange(0, rng.choice((1_000, 500_000, 1_500_000)))
    begin = [7, 1, 8, 2, 9, 3][: rng.choice((0, 0, 4, 6))]
    return PlannedRequest(
        name=f"r{number}",
        client=rng.choice("ab"),
        at_us=at_us,
        prompt=begin + [rng.randrange(50) for _ in range(rng.randint(1, 6))],
        max_new_tokens=rng.choice((1, 2, 3, 4, 6)),
        seed=rng.randrange(3),
        deadline_ms=rng.choice((None, None, None, None, None, 800)),
        batch_invariant=rng.random() < 0.15,
        priority=rng.choice((0, 0, 0, 1)),
        cancel_us=at_us + rng.randrange(1_500_000) if rng.random() < 0.15 else 0,
    )


def _draw_faults(rng: random.Random) -> list[Fault]:
    """Return the faults of a history in the order of time. A stage that is stopped may go on, or not."""
    count = rng.choice((0, 1, 1, 2, 2, 3, 5))
    storm = rng.random() < 0.04
    faults: list[Fault] = []
    for _ in range(count):
        begin_us, end_us = rng.choice(((0, 300_000), *3 * ((400_000, FAULTS_END_US),)))
        faults += _draw_fault(rng, rng.randrange(begin_us, end_us))
    if storm:
        target = rng.choice(STAGES)
        faults += [Fault(500_000 + 300_000 * n, "kill", target, rng.randrange(1000)) for n in range(RESTART_LIMIT + 2)]
    return sorted(faults, key=lambda fault: fault.at_us)


def _draw_cuts(seed: int) -> list[Fault]:
    """Return broken connections between living stages. They have a generator of their own: others stay as they are."""
    rng = random.Random(f"cuts of {seed}")
    count = rng.choice((0, 0, 0, 0, 0, 1, 1, 2))
    times = [rng.randrange(*rng.choice(((300_000, 700_000), (400_000, FAULTS_END_US)))) for _ in range(count)]
    return [Fault(at_us, "cut", rng.choice(LINKS), rng.randrange(1000)) for at_us in times]


def _draw_fault(rng: random.Random, at_us: int) -> list[Fault]:
    kind = rng.choices(
        ("kill", "stop", "stall", "disconnect", "vanish", "freeze", "lose", "drain"), (45, 16, 5, 12, 6, 5, 10, 1)
    )[0]
    draw = rng.randrange(1000)
    if kind == "stop":
        target = rng.choice((*STAGES, "supervisor"))
        again = [] if rng.random() < 0.35 and target != "supervisor" else [
            Fault(at_us + rng.choice((50_000, 1_000_000, 7_000_000)), "continue", target, draw)
        ]  # fmt: skip
        return [Fault(at_us, kind, target, draw), *again]
    if kind in ("disconnect", "vanish"):
        return [Fault(at_us, kind, rng.choice("ab"), draw)]
    if kind == "kill":
        target, again_us = rng.choice(STAGES), at_us + rng.randrange(1_000, 300_000)
        again = [Fault(again_us, rng.choice(("kill", "stop")), target, draw)] if rng.random() < 0.2 else []
        return [Fault(at_us, kind, target, draw), *again]
    return [Fault(at_us, kind, {"stall": "loader", "lose": "predictor"}.get(kind, "all"), draw)]
