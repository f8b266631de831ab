"""Several Ray nodes on this machine, with engines whose links bind: emulated, so that they cost no processor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import expertflow

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
HOST, PORT = "127.0.0.1", 8127
OBJECT_STORE_BYTES = 80_000_000
PATIENCE_S = 400.0


@contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """Yield the address of a Ray with so many nodes, which this process has joined, and its Serve."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            nodes.add_node(**node)
        ray.init(address=nodes.address, namespace="benchmark", log_to_driver=False, logging_level=30)
        serve.start(http_options={"host": HOST, "port": PORT, "location": "HeadOnly"})
        yield str(nodes.address)
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


def deploy(replicas: int, engine: dict[str, Any]) -> float:
    """Deploy so many replicas, or change their number; return the seconds until all run."""
    from expertflow.runtime.cluster.hosts.application import build_application
    from ray import serve

    begun_s = time.monotonic()
    settings = {"model": str(MODEL), "replicas": replicas, "engine": engine, "cpus_per_replica": 0.5}
    serve.run(build_application(settings), name="expertflow", route_prefix="/")
    while running() != replicas:
        if time.monotonic() - begun_s > PATIENCE_S:
            raise TimeoutError(f"{running()} of {replicas} replicas run")
        time.sleep(0.5)
    return time.monotonic() - begun_s


def running() -> int:
    """Return the number of replicas that run."""
    from ray import serve

    application = serve.status().applications.get("expertflow")
    if application is None or "Engines" not in application.deployments:
        return 0
    return sum(n for state, n in application.deployments["Engines"].replica_states.items() if state == "RUNNING")


def replica_processes() -> list[int]:
    """Return the processes of engines' replicas, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
            except OSError:
                continue
            if words.startswith(b"ray::ServeReplica:expertflow:Engines"):
                found.append((int(status.rpartition(")")[2].split()[19]), int(entry.name)))
    return [pid for _, pid in sorted(found)]


def ray_processes() -> dict[str, list[int]]:
    """Return kind -> the processes of Ray on this machine, without engines."""
    kinds: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if kind := _kind_of(words):
                kinds.setdefault(kind, []).append(int(entry.name))
    return kinds


def _kind_of(words: str) -> str:
    if words.startswith("ray::"):
        return words.split()[0].partition("::")[2][:40]
    for part in ("gcs_server", "raylet", "dashboard/agent", "runtime_env/agent", "log_monitor", "monitor.py"):
        if "/ray/" in words and part in words:
            return part
    return ""
