"""Holds the simulation beside the real runs: python -m expertflow.benchmarks.cluster.simulated RESULT TRACE.

The time of a step is fitted to a run of the same load with every expert in a slot, and the rate of the link is the one
that was set. Tokens a second and hit rates of all replicas with fewer slots are predictions then.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from expertflow.configs.sizes import parse_size
from expertflow.runtime.client.completions import Completion
from expertflow.runtime.cluster.simulation.machine import ReplicaMachine
from expertflow.runtime.cluster.simulation.simulator import SimulatedLoad, SimulatedOutcome, simulate
from expertflow.runtime.cluster.simulation.workload import Workload
from expertflow.workers.traces.trace import Trace, read_npz

from ..report import show_table

FITS = 12
"""Halvings of the interval in which the time of a step is sought."""
MAX_STEP_S = 5.0


def trace_of(done: list[Completion], experts: int) -> Trace:
    """Return the routing of completions that were asked for it; the last token of each, which no step ran, is left."""
    routes = [completion.routed_experts for completion in done if completion.routed_experts is not None]
    ids = [[*each.prompt_ids, *each.token_ids][: len(route)] for each, route in zip(done, routes, strict=True)]
    decoded = [np.arange(len(route)) >= len(each.prompt_ids) for each, route in zip(done, routes, strict=True)]
    lengths = [len(route) for route in routes]
    return Trace(
        routes=np.concatenate(routes).astype(np.uint16),
        token_ids=np.concatenate([np.asarray(each, dtype=np.int64) for each in ids]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        expert_count=experts,
        decoded=np.concatenate(decoded),
    )


def main() -> None:
    """Show measured and simulated figures side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = msgspec.json.decode(options.result.read_bytes())
    trace = read_npz(options.trace)
    machine = _fit(trace, result)
    rows = [_row(measured, trace, machine, result) for measured in _measured(result)]
    show_table(f"step of {1e3 * machine.step_s:.1f} ms, {machine.slots} slots", rows, left=1)
    if options.out:
        content = {"machine": machine, "rows": rows}
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def _measured(result: dict[str, Any]) -> list[tuple[str, int, str, dict[str, Any]]]:
    """Return name, replicas, rule and figures of each run."""
    return [(f"{n} replicas", n, "experts", row) for n, row in zip((1, 2, 4), result["scaling"], strict=False)]


def _run(trace: Trace, machine: ReplicaMachine, replicas: int, rule: str, requests: int) -> SimulatedOutcome:
    """Simulate a load that runs twice, as in the real measurement; the second time counts."""
    workload = Workload(first_sequences(trace, requests * replicas), 0.5, 1 << 20)
    count = requests * replicas
    return simulate(workload, machine, SimulatedLoad(replicas=replicas, requests=count, warm_up=count, rule=rule))


def first_sequences(trace: Trace, count: int) -> Trace:
    """Return the first sequences of a trace."""
    end = int(trace.offsets[count])
    decoded = None if trace.decoded is None else trace.decoded[:end]
    routes, ids, offsets = trace.routes[:end], trace.token_ids[:end], trace.offsets[: count + 1]
    return Trace(routes=routes, token_ids=ids, offsets=offsets, expert_count=trace.expert_count, decoded=decoded)


def _fit(trace: Trace, result: dict[str, Any]) -> ReplicaMachine:
    """Return the machine that does as many tokens a second as the real one when nothing is loaded."""
    wanted = median(result["overhead resident"]["direct"])
    engine = result["engine"]
    machine = ReplicaMachine(
        batch_size=engine["batch_size"],
        slots=trace.routes.shape[1] * trace.expert_count,
        policy="popularity",
        expert_bytes=result["expert_bytes"],
        link_bytes_per_s=float(parse_size(engine["link_rate"], "link_rate").of(0)),
        message_s=0.01,
    )
    low, high = 1e-4, MAX_STEP_S
    for _ in range(FITS):
        machine = msgspec.structs.replace(machine, step_s=(low + high) / 2)
        fast = _run(trace, machine, 1, "experts", result["requests"]).tokens_per_s > wanted
        low, high = (machine.step_s, high) if fast else (low, machine.step_s)
    return msgspec.structs.replace(machine, slots=result["slots"])


def _row(
    run: tuple[str, int, str, dict[str, Any]], trace: Trace, machine: ReplicaMachine, result: dict[str, Any]
) -> dict[str, Any]:
    name, replicas, rule, real = run
    outcome = _run(trace, machine, replicas, rule, result["requests"])
    return {
        "what": name,
        "tokens/s real": real["tokens/s"],
        "simulated": round(outcome.tokens_per_s, 2),
        "off": f"{outcome.tokens_per_s / real['tokens/s'] - 1:+.1%}",
        "found real": real["found"],
        "found simulated": round(outcome.hit_rate, 3),
    }


if __name__ == "__main__":
    main()
