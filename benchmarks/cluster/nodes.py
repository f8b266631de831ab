"""Several Ray nodes on this machine, with engines whose links bind: emulated, so that they cost no processor."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import expertflow
import msgspec
from expertflow.runtime.cluster.hosts.extra import SETTINGS

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
HOST, PORT = "127.0.0.1", 8127
OBJECT_STORE_BYTES = 80_000_000
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
PATIENCE_S = 400.0
TRIES = 3


class Nodes:
    """Nodes of a Ray on this machine, the head first; each has room for one engine."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self._others = [self._cluster.add_node(**NODE) for _ in range(count - 1)]
        self.address = str(self._cluster.address)

    def replace_one(self) -> None:
        """Kill the oldest node but the head, with everything on it, and add another one."""
        self._cluster.remove_node(self._others.pop(0), allow_graceful=False)
        self._others.append(self._add_one())

    def _add_one(self) -> Any:
        """Ray gives a node 30 s to begin, too short where four engines begin as well; then try again."""
        for _ in range(TRIES - 1):
            with suppress(Exception):  # Ray raises no other type here
                return self._cluster.add_node(**NODE)
        return self._cluster.add_node(**NODE)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextmanager
def ray_nodes(count: int) -> Iterator[Nodes]:
    """Yield a Ray with so many nodes, which this process has joined, and its Serve; engines are in a folder of its."""
    os.environ.update(SETTINGS)
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="ef-bench-")
    import ray
    from ray import serve

    nodes = Nodes(count)
    try:
        ray.init(address=nodes.address, namespace="benchmark", log_to_driver=False, logging_level=30)
        serve.start(http_options={"host": HOST, "port": PORT, "location": "HeadOnly"})
        yield nodes
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.close()


def deploy_engines(replicas: int, engine: dict[str, Any]) -> float:
    """Deploy so many replicas, or change their number; return the seconds until all serve."""
    from expertflow.runtime.cluster.hosts.deploying import HttpAddress, deploy
    from expertflow.runtime.cluster.hosts.settings import ClusterSettings

    begun_s = time.monotonic()
    settings = {"model": str(MODEL), "replicas": replicas, "engine": engine, "cpus_per_replica": 0.5}
    deploy(msgspec.convert(settings, ClusterSettings), HttpAddress(HOST, PORT))
    return round(time.monotonic() - begun_s, 1)


@contextmanager
def gateway(rule: str) -> Iterator[str]:
    """Yield the address of a gateway with this rule to the replicas that run; Ray was joined before."""
    from expertflow.runtime.cluster.hosts.joining import GatewayThread
    from expertflow.runtime.cluster.hosts.settings import ClusterSettings

    thread = GatewayThread(msgspec.convert({"model": "", "routing": rule}, ClusterSettings))
    try:
        yield thread.start().address
    finally:
        thread.stop()
