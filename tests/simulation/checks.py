"""What must hold when all is quiet: nothing is left anywhere, and both halves of each protocol agree."""

from __future__ import annotations

from typing import Any

from expertflow.tests.simulation.agenda import require
from expertflow.tests.simulation.world import World


def check_rest(world: World) -> None:
    """Check an engine at rest. Raises Broken."""
    for client in world.clients.values():
        for name, request in client.requests.items():
            require(client.gone or request.ends == 1, "I4", f"{name} has ended {request.ends} times")
    if world.engine_ended:
        return
    scheduler, compute, loader, predictor = (
        world.live(stage).shell for stage in ("scheduler", "compute", "loader", "predictor")
    )
    _check_scheduler(scheduler, compute)
    _check_slots(world, compute, loader)
    newest = predictor._state._newest_routed
    late = [step for step in predictor._state._held if step <= newest]
    require(not late, "leak", f"the predictor holds requests of steps that have run: {late}")


def _check_scheduler(scheduler: Any, compute: Any) -> None:
    facts = scheduler._state.statistics()
    levels = {
        "queue": facts.queue, "running": facts.running, "units": facts.units, "steps": facts.steps_in_flight,
        "reserved bytes": facts.kv_reserved_bytes,
    }  # fmt: skip
    require(not any(levels.values()), "leak", f"the scheduler has something left: {levels}")
    opened = list(scheduler._state._frontend.ledger.open)
    require(not opened, "leak", f"the scheduler has open requests that nobody waits for: {opened}")
    require(facts.stale_steps == 0, "epochs", f"{facts.stale_steps} steps of an earlier compute were answered")
    held = compute.executor.held
    require(not held.units, "leak", f"compute has units left: {list(held.units)}")
    kept = sum(block.size for block in held.blocks.values()) * 10
    require(kept == facts.kv_prefix_bytes, "leak", f"{kept} bytes of prefixes, known are {facts.kv_prefix_bytes}")


def _check_slots(world: World, compute: Any, loader: Any) -> None:
    facts, held = loader._runtime.ledger.statistics(), compute.held()
    if not world.stages["loader"].reads_hang:
        require(facts.filling == 0, "leak", "a transfer was forgotten")
    require(facts.free + facts.held + facts.filling == world.plan.slots, "leak", f"a slot got lost: {facts}")
    require(facts.held == len(held), "leak", f"the loader thinks that compute holds {facts.held}, it holds {held}")
    invalid = facts.invalid - loader.refused_advice
    require(invalid == 0, "R1", f"the ledger took {invalid} messages for invalid")
    invalid = compute.holdings.statistics().invalid
    require(invalid == 0, "R1", f"the holdings took {invalid} messages for invalid")
    for slot, key in held.items():
        world.memory.check_read(slot, key)
