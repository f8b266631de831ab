"""Runs one history to its end and judges it; a broken one becomes a script that replays."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import msgspec
from expertflow.tests.simulation.agenda import Agenda, Broken, ScriptedAgenda, require
from expertflow.tests.simulation.checks import check_rest
from expertflow.tests.simulation.faults import apply, name_of_fault, read_fault
from expertflow.tests.simulation.plan import Fault, Plan, draw_plan
from expertflow.tests.simulation.words import describe
from expertflow.tests.simulation.world import MAX_EVENTS, SETTLE_US, World

REST_US = 400_000
"""Time for which the engine must be whole and without requests before it is judged."""


@dataclass
class Outcome:
    """How a history ended. `broken` is empty if every check held."""

    plan: Plan
    broken: str
    log: list[tuple[int, str, Any]] = field(repr=False)
    state: str = ""

    @property
    def check(self) -> str:
        """Return the check that caught it."""
        return self.broken.partition(":")[0]

    def script(self) -> str:
        """Return the history as text that `replay` takes."""
        plan = msgspec.json.encode(msgspec.structs.replace(self.plan, faults=[])).decode()
        lines = [f"# seed {self.plan.seed}: {self.broken or 'every check held'}"]
        lines += [f"# {line}" for line in self.state.splitlines()]
        lines += [f"plan {plan}"]
        lines += [f"{at_us / 1e6:.6f} {name}{describe(detail)}" for at_us, name, detail in self.log]
        return "\n".join(lines) + "\n"


def run_seed(seed: int) -> Outcome:
    """Run the history of a seed. Frees what a hundred histories leave."""
    if seed % 100 == 0:
        gc.collect()
    return run_plan(draw_plan(seed))


def run_plan(plan: Plan) -> Outcome:
    """Run the history of a plan."""
    agenda = Agenda(plan.seed, plan.tail)
    world = World(plan, agenda)
    for fault in plan.faults:
        _add_fault(world, fault)
    return _judge(world, agenda, _play)


def replay(script: str, exact: bool = True) -> Outcome:
    """Run the history of a script, event by event. Not `exact`: as near to it as the engine lets it, and to its end."""
    lines = [line for line in script.splitlines() if line and not line.startswith("#")]
    plan = msgspec.json.decode(lines[0].removeprefix("plan "), type=Plan)
    events = [_read_line(line) for line in lines[1:]]
    faults = [read_fault(name, at_us) for at_us, name in events if name.startswith("fault ")]
    agenda = ScriptedAgenda(events, exact)
    world = World(plan if exact else msgspec.structs.replace(plan, faults=faults), agenda)
    for fault in faults:
        _add_fault(world, fault)
    return _judge(world, agenda, _play_script if exact else _play)


def shrink(outcome: Outcome) -> Outcome:
    """Return a history that breaks the same check with fewer faults and requests."""
    best = outcome
    for part in ("faults", "requests"):
        for each in list(getattr(best.plan, part)):
            left = [other for other in getattr(best.plan, part) if other is not each]
            smaller = run_plan(msgspec.structs.replace(best.plan, **{part: left}))
            if smaller.check == outcome.check:
                best = smaller
    return best


def _add_fault(world: World, fault: Fault) -> None:
    world.agenda.at(name_of_fault(fault), lambda: apply(world, fault), fault.at_us)


def _read_line(line: str) -> tuple[int, str]:
    time, _, rest = line.partition(" ")
    return round(float(time) * 1e6), rest.partition(": ")[0]


def _judge(world: World, agenda: Agenda, play: Any) -> Outcome:
    broken = state = ""
    try:
        play(world, agenda)
    except Broken as error:
        broken, state = str(error), world.describe()
    finally:
        world.close()
    return Outcome(world.plan, broken, agenda.log, state)


def _play(world: World, agenda: Agenda) -> None:
    """Let everything happen until all requests have ended and the engine is at rest, or time is over."""
    last_us = max((fault.at_us for fault in world.plan.faults), default=0)
    last_us = max(last_us, *(max(request.at_us, request.cancel_us) for request in world.plan.requests), 0)
    rest_from_us: int | None = None
    for _ in range(MAX_EVENTS):
        if not agenda.step():
            break
        world.bury()
        if agenda.now_us <= last_us + world.frozen_us:
            continue
        if world.engine_ended and not world.open_requests:
            break
        if world.open_requests or not (world.whole and world.idle):
            rest_from_us = None
        elif rest_from_us is None:
            rest_from_us = agenda.now_us
        elif agenda.now_us > rest_from_us + REST_US:
            break
        late = agenda.now_us - last_us - world.frozen_us > SETTLE_US
        require(not late, "liveness", f"not at rest: {world.open_requests or world.state_of_stages()}")
    require(not world.open_requests, "liveness", f"nothing can happen, and open are {world.open_requests}")
    check_rest(world)


def _play_script(world: World, agenda: Agenda) -> None:
    while agenda.step():
        world.bury()
    require(not world.open_requests, "liveness", f"not at rest: {world.open_requests}")
    check_rest(world)
