"""What can go wrong: each fault does one thing to a world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expertflow.tests.simulation.plan import HANG_S, Fault
from expertflow.tests.simulation.world import World

PATIENCE_US = (HANG_S + 4) * 1_000_000
"""Time after which a stage that was stopped is no longer suspect."""
LONG_US = 60_000_000


def apply(world: World, fault: Fault) -> Any:
    """Let a fault happen; return what came of it, None: what its name says."""
    return FAULTS[fault.kind](world, fault.target, fault.draw)


def name_of_fault(fault: Fault) -> str:
    """Return the fault as scripts call it."""
    return f"fault {fault.kind} {fault.target} {fault.draw}"


def read_fault(name: str, at_us: int) -> Fault:
    """Return the fault of a name."""
    _, kind, target, draw = name.split()
    return Fault(at_us, kind, target, int(draw))


def kill(world: World, stage: str, draw: int) -> Any:
    """Kill a stage as SIGKILL does."""
    process = world.live(stage)
    return "nothing: it is dead" if process is None else world.kill(process, draw)


def stop(world: World, stage: str, draw: int) -> Any:
    """Stop a process as SIGSTOP does."""
    process = world.supervisor if stage == "supervisor" else world.live(stage)
    if process is None or process.dead:
        return "nothing: it is dead"
    process.stopped = True
    _suspect(world, stage, LONG_US)
    return None


def proceed(world: World, stage: str, draw: int) -> Any:
    """Let a stopped process go on."""
    process = world.supervisor if stage == "supervisor" else world.live(stage)
    if process is None or process.dead or not process.stopped:
        return "nothing"
    _suspect(world, stage, PATIENCE_US)
    process.proceed()
    return None


def stall(world: World, stage: str, draw: int) -> Any:
    """Let all reads of the loader hang, as a dead network drive does."""
    process = world.live(stage)
    if process is None:
        return "nothing: it is dead"
    process.reads_hang = True
    _suspect(world, stage, LONG_US)
    return None


def disconnect(world: World, client: str, draw: int) -> None:
    """Cut the connection between a client and the scheduler."""
    world.clients[client].socket.cut(draw)


def cut(world: World, link: str, draw: int) -> str:
    """Break the connection between two stages that go on living."""
    one, other = link.split("-")
    return world.cut((one, other), draw)


def vanish(world: World, client: str, draw: int) -> None:
    """Kill a client."""
    world.clients[client].vanish(draw)


def freeze(world: World, target: str, draw: int) -> str:
    """Let the whole machine stand still for a while: everybody's clock jumps."""
    pause_us = 1000 * (500 + 40 * draw)
    for stage, until_us in world.hanging_us.items():
        if until_us >= world.agenda.now_us:  # what hangs does so for as long as before, by its own time
            world.hanging_us[stage] = until_us + pause_us
    world.agenda.now_us += pause_us
    world.frozen_us += pause_us
    world.frozen_until_us = world.agenda.now_us + 1_000_000
    return f"for {pause_us / 1e6:.1f} s"


def lose(world: World, target: str, draw: int) -> Any:
    """Lose the advice that is on its way to and from the predictor: nothing may depend on it."""
    return world.lose_advice(draw)


def drain(world: World, target: str, draw: int) -> None:
    """Ask the engine to stop."""
    world.engine.stop()
    world.supervisor.wake()


def _suspect(world: World, stage: str, time_us: int) -> None:
    world.hanging_us[stage] = max(world.hanging_us.get(stage, 0), world.agenda.now_us + time_us)


FAULTS: dict[str, Callable[[World, str, int], Any]] = {
    "kill": kill,
    "stop": stop,
    "continue": proceed,
    "stall": stall,
    "disconnect": disconnect,
    "cut": cut,
    "vanish": vanish,
    "freeze": freeze,
    "lose": lose,
    "drain": drain,
}
