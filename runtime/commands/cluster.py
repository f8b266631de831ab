"""`expertflow cluster`: several engines on several hosts as one, and a simulation of many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from msgspec import Meta
from rich.table import Table

from ...configs.checks import Seed
from ...configs.sizes import parse_size
from ...errors import UsageError
from ...ipc.messages import Progress
from ...workers.traces.reading import read_step_log, read_trace
from ..cluster.hosts.control import ClusterOptions, print_status, start_cluster, stop_cluster
from ..cluster.routing.rules import DEFAULT_SLACK, RuleName
from ..cluster.simulation.machine import ReplicaMachine
from ..cluster.simulation.report import (
    ASSUMPTIONS,
    LEGEND,
    outcome_table,
    replica_counts,
    write_outcomes,
)
from ..cluster.simulation.simulator import SimulatedLoad, SimulatedOutcome, simulate
from ..cluster.simulation.workload import Workload
from ..command_line.base import DONE, EngineCommand
from ..monitor.progress import ProgressView
from ..monitor.tables import facts_table, result_console
from ..replay.choices import positive_bytes


@dataclass(frozen=True, kw_only=True)
class Cluster(EngineCommand):
    """Run engines on several hosts as one (up, status, down), or simulate it on recorded routing (simulate).

    One engine a host, on Ray (the extra `ray`); requests go where their experts are, and streams survive the death of a
    replica. docs/cluster.md tells more.
    """

    option_groups: ClassVar = {
        "Cluster": ("replicas", "address", "host", "port", "routing", "slack", "api_key_file"),
        "Simulation": (
            "requests", "rate", "bandwidth", "expert_size", "slots", "step_ms", "token_ms", "exposed",
            "failures", "repair_s", "message_ms", "prompt_share", "output_tokens", "draw", "json",
        ),
    }  # fmt: skip
    action: tyro.conf.Positional[Literal["up", "status", "down", "simulate"]]
    """up: start a cluster, or change the one that runs; status: show its replicas; down: end it; simulate: what so many
    replicas would do with a recorded load."""
    recorded: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[TRACE]")] = None
    """For simulate: an .npz file, or a folder that `expertflow trace` wrote."""
    replicas: str = "1"
    """Replicas, one a host: 4; for up also bounds between which their number follows the load (1..8); for simulate
    several numbers (1,2,4 or 1..1000)."""
    address: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = ""
    """Ray cluster to join; without it one is started on this machine."""
    host: str = "127.0.0.1"
    """Address at which the HTTP server listens, and a Ray that is started here: by default this machine alone."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 8000
    """Port of the HTTP server."""
    routing: RuleName = "experts"
    """Rule that chooses a replica: experts, or one to compare with."""
    slack: Annotated[int, Meta(ge=0, le=10_000)] = DEFAULT_SLACK
    """Requests that a replica may have beyond the least busy one."""
    api_key_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the keys of the HTTP server, one a line; without it everyone who reaches the port is let in."""
    requests: Annotated[int, Meta(ge=1, le=10**7)] = 40
    """Requests for each replica."""
    rate: Annotated[float, Meta(ge=0)] = 0.0
    """Requests a second and replica, at random times; 0: all at the beginning."""
    bandwidth: Annotated[str, tyro.conf.arg(metavar="BYTES")] = "1GB"
    """Rate of the link from a replica's tier to its slots, a second."""
    expert_size: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Size of an expert; the folder of a trace has it."""
    slots: str = "25%"
    """Expert slots of a replica: so many for each layer (16), or a share (25%)."""
    step_ms: Annotated[float, Meta(gt=0, le=10**6)] = 20.0
    """Time of a step without loads."""
    token_ms: Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    """Additional time of each token of a step."""
    exposed: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the loading time in which compute waits; 1: nothing is prefetched."""
    failures: Annotated[float, Meta(ge=0)] = 0.0
    """Mean time in seconds from the start of a replica to its death; 0: none dies."""
    repair_s: Annotated[float, Meta(ge=0)] = 30.0
    """Time from a death until the replica is back."""
    message_ms: Annotated[float, Meta(ge=0, le=10**6)] = 1.0
    """Time of a message between gateway and replica."""
    prompt_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Share of a sequence that is its prompt, where the trace does not say."""
    output_tokens: Annotated[int, Meta(ge=1)] = 64
    """Longest output of a request."""
    draw: Seed = 0
    """Seed of arrivals, deaths and the order of the sequences."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the results to this file as well."""

    def run(self) -> int:
        match self.action:
            case "up":
                start_cluster(self.engine, self._options())
            case "status":
                print_status(self.address)
            case "down":
                stop_cluster(self.address)
            case "simulate":
                self._simulate()
        return DONE

    def _options(self) -> ClusterOptions:
        first, _, last = self.replicas.partition("..")
        if not first.isdecimal() or not (last or first).isdecimal():
            remedy = "Give a number, or bounds such as 1..8"
            raise UsageError(f"'{self.replicas}' is no number of replicas", "--replicas", remedy)
        return ClusterOptions(
            min_replicas=int(first),
            max_replicas=int(last or first),
            address=self.address,
            host=self.host,
            port=self.port,
            routing=self.routing,
            slack=self.slack,
            key_file=self.api_key_file,
            preset=self.preset,
        )

    def _simulate(self) -> None:
        if self.recorded is None:
            remedy = "Give an .npz file, or a folder that `expertflow trace` wrote"
            raise UsageError("no trace is given", "TRACE", remedy)
        counts = replica_counts(self.replicas)
        trace = read_trace(self.recorded)
        workload = Workload(trace, self.prompt_share, self.output_tokens)
        workload.shuffle(self.draw)
        machine = self._machine(workload)
        outcomes: list[SimulatedOutcome] = []
        with ProgressView() as view:
            for done, count in enumerate(counts):
                view(Progress("simulate", "numbers of replicas", done, len(counts)))
                outcomes.append(simulate(workload, machine, self._load(count)))
        console = result_console()
        for part in (self._facts(workload), "", outcome_table(outcomes, machine), "", facts_table(LEGEND), ""):
            console.print(part)
        for assumption in ASSUMPTIONS:
            console.print(f"Assumed: {assumption}", soft_wrap=True)
        if self.json is not None:
            write_outcomes(self.json, outcomes, machine)

    def _facts(self, workload: Workload) -> Table:
        when = f"{self.rate:g} a second" if self.rate else "all at the beginning"
        facts = {
            "trace": f"{self.recorded}: {len(workload):,} sequences",
            "load": f"{self.requests} requests for each replica, {when}",
        }
        return facts_table(facts)

    def _load(self, replicas: int) -> SimulatedLoad:
        return SimulatedLoad(
            replicas=replicas,
            requests=self.requests * replicas,
            rate=self.rate * replicas,
            rule=self.routing,
            slack=self.slack,
            seed=self.draw,
        )

    def _machine(self, workload: Workload) -> ReplicaMachine:
        slots = parse_size(self.slots, "--slots")
        per_layer = slots.share * workload.experts if slots.share is not None else float(slots.of(0))
        return ReplicaMachine(
            batch_size=self.engine.batch_size,
            slots=max(1, round(per_layer * workload.layers)),
            policy=self.engine.policy,
            expert_bytes=self._expert_bytes(),
            link_bytes_per_s=float(positive_bytes(self.bandwidth, "bandwidth")),
            step_s=self.step_ms / 1e3,
            token_s=self.token_ms / 1e3,
            exposed=self.exposed,
            message_s=self.message_ms / 1e3,
            fails_after_s=self.failures,
            repaired_after_s=self.repair_s,
        )

    def _expert_bytes(self) -> int:
        if self.expert_size:
            return positive_bytes(self.expert_size, "expert_size")
        log = read_step_log(self.recorded) if self.recorded is not None and self.recorded.is_dir() else None
        if log is None or log.header.expert_bytes <= 0:
            raise UsageError("is not known", "--expert-size", "Give the size of an expert, such as 9MB")
        return log.header.expert_bytes
