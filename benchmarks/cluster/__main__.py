"""Several engines as one on a real Ray: python -m expertflow.benchmarks.cluster [--parts …] [--out FILE].

The nodes are processes of this machine. Engines have one thread each and an emulated link that binds, so that two
cores carry four engines; the figures say what routing and Ray do, not how fast a model is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, get_args

from expertflow.runtime.cluster.routing.rules import RuleName
from expertflow.runtime.engine.process_memory import pss_bytes
from expertflow.workers.traces.trace import write_npz

from ..report import show_table, write_json
from .disturbed import measure_kills
from .load import engine_folders, engine_sizes, measure_load, record_routing, requests_of
from .nodes import Nodes, deploy_engines, gateway, ray_nodes
from .processes import ray_processes
from .prompts import KINDS
from .simulated import trace_of

TOKENS = 24
PARTS = ("overhead", "scaling", "kills", "rules", "shift")
SHIFT_PIECES = 3
RESIDENT = {"expert_memory": "40MB", "tier": "host", "link": "copy", "link_rate": ""}
"""Engine with every expert in a slot: nothing hides what Ray costs."""
Results = dict[str, Any]


def main() -> None:
    """Measure the parts and write them."""
    options = _parse()
    engine: Results = {
        "expert_memory": options.memory, "tier": "host", "link": "dma", "link_rate": options.link,
        "compute_threads": 1, "dtype": "float32", "batch_size": 8, "hints": "off", "predictor": "none",
    }  # fmt: skip
    result: Results = {"engine": engine, "nodes": options.nodes, "load": os.getloadavg()}
    with ray_nodes(options.nodes) as nodes:
        _on_few(options, engine, result)
        _on_all(options, engine, result, nodes)
        result["memory"] = _memory()
        write_json(options.out, result)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, choices=(1, 2, 4))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory", default="8MB", help="expert memory of each engine")
    parser.add_argument("--link", default="40MB", help="rate of each engine's emulated link, a second")
    parser.add_argument("--requests", type=int, default=32, help="requests for each replica")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", choices=get_args(RuleName), default=list(get_args(RuleName)))
    parser.add_argument("--streams", type=int, default=500, help="streams under kills")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--out", type=Path, help="JSON; the routing of all requests goes beside it, for .simulated")
    return parser.parse_args()


def _on_few(options: argparse.Namespace, engine: Results, result: Results) -> None:
    """Measure what one replica costs through Ray, and how two and four scale; record the routing."""
    if "overhead" in options.parts:
        deploy_engines(1, {**engine, **RESIDENT})
        result["overhead resident"] = _overhead(options)
        deploy_engines(1, engine)
        result["overhead"] = _overhead(options)
    if "scaling" not in options.parts:
        return
    for count in [count for count in (1, 2, 4) if count <= options.nodes]:
        result[f"deployed_{count}_s"] = deploy_engines(count, engine)
        if count == 1:
            result["requests"] = options.requests
            _record(options, result)
        engines = engine_folders()
        with gateway("experts") as address:
            requests = requests_of(options.requests * count, TOKENS)
            rows = [measure_load(address, requests, engines).row(f"{count} replicas") for _ in range(2)]
        result.setdefault("scaling", []).append(rows[1])  # the first fills slots, and teaches the gateway
        show_table("scaling", result["scaling"], left=1)
        write_json(options.out, result)


def _on_all(options: argparse.Namespace, engine: Results, result: Results, nodes: Nodes) -> None:
    """Measure kills, rules and a shift of kinds on all nodes."""
    if "kills" in options.parts:
        deploy_engines(options.nodes, {**engine, **RESIDENT})
        with gateway("experts") as address:
            requests = requests_of(options.streams, TOKENS)
            result["kills"] = measure_kills(address, requests, nodes, options.kill_every, 12 * options.nodes)
        show_table("kills", [result["kills"]], left=0)
        write_json(options.out, result)
    if "rules" in options.parts:
        deploy_engines(options.nodes, engine)
        result["rules"] = _rules(options)
        write_json(options.out, result)
    if "shift" in options.parts:
        deploy_engines(options.nodes, engine)
        result["shift"] = _shift(options)
        write_json(options.out, result)


def _overhead(options: argparse.Namespace) -> Results:
    """Measure one engine directly and through a gateway over Ray, in turn; return medians and all runs."""
    (engine,) = engine_folders()
    requests = requests_of(options.requests, TOKENS)
    rates: dict[str, list[float]] = {"direct": [], "gateway over Ray": []}
    with gateway("round-robin") as over_ray:
        for number in range(options.rounds + 1):
            ways = [("direct", engine), ("gateway over Ray", over_ray)]
            for name, address in ways[:: 1 if number % 2 else -1]:
                measured = measure_load(address, requests, [engine])
                if number:  # the first round warms up
                    rates[name].append(round(measured.tokens / measured.seconds, 2))
    pairs = [direct / over - 1 for direct, over in zip(*rates.values(), strict=True)]
    show_table("tokens/s at one replica", [{"way": name, "median": median(runs)} for name, runs in rates.items()])
    return {**rates, "overhead": [round(pair, 4) for pair in pairs], "median": round(median(pairs), 4)}


@contextmanager
def _gateways(rules: list[str]) -> Iterator[dict[str, str]]:
    """Yield rule -> the address of a gateway; each keeps what it has learned."""
    with ExitStack() as stack:
        yield {rule: stack.enter_context(gateway(rule)) for rule in rules}


def _rules(options: argparse.Namespace) -> list[Results]:
    """Run the same four kinds of requests by each rule in turn; the first round fills slots and teaches.

    Kinds come in a random order: in turn, round robin would give each of four replicas one kind.
    """
    engines, rows = engine_folders(), list[Results]()
    with _gateways(options.rules) as addresses:
        for number in range(options.rounds + 1):
            count = options.requests * options.nodes
            requests = requests_of(count, TOKENS, first=number * count)
            Random(number).shuffle(requests)
            for rule, address in addresses.items():
                rows.append(measure_load(address, requests, engines).row(f"{rule}, round {number}"))
    show_table("rules", rows, left=1)
    return rows


def _shift(options: argparse.Namespace) -> list[Results]:
    """Run two kinds of requests, then the two others, in pieces: how soon as many experts are found as before."""
    engines, rows = engine_folders(), list[Results]()
    for rule in ("experts", "two-choices"):
        with gateway(rule) as address:
            for kinds in (KINDS[:2], KINDS[2:]):
                for piece in range(SHIFT_PIECES):
                    count = options.requests * options.nodes // 2
                    requests = requests_of(count, TOKENS, first=piece * count, kinds=kinds)
                    name = f"{rule}, {'/'.join(kinds)}, piece {piece + 1}"
                    rows.append(measure_load(address, requests, engines).row(name))
    show_table("shift", rows, left=1)
    return rows


def _record(options: argparse.Namespace, result: Results) -> None:
    """Run all requests of the measurement once, and write their routing for the simulation; it warms up, too."""
    (engine,) = engine_folders()
    done = record_routing(engine, requests_of(options.requests * options.nodes, TOKENS))
    result["slots"], result["expert_bytes"], experts = engine_sizes(engine)
    if options.out:
        write_npz(trace_of(done, experts), options.out.with_suffix(".npz"))


def _memory() -> dict[str, float]:
    """Return MB (PSS) of Ray's processes by kind; those of replicas include their supervisor, not the stages."""
    memory = {kind: sum(map(pss_bytes, pids)) / 1e6 for kind, pids in sorted(ray_processes().items())}
    show_table("memory of Ray", [{"what": kind, "MB": round(size, 1)} for kind, size in memory.items()], left=1)
    return {kind: round(size, 1) for kind, size in memory.items()}


if __name__ == "__main__":
    main()
