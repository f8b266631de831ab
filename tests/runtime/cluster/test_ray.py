"""A cluster of nodes on a real Ray (`make test-cluster`): the same answers, whatever dies or is drained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from expertflow.benchmarks.cluster.processes import replica_processes
from expertflow.runtime.cluster.autoscaling import ScalingBounds
from expertflow.runtime.cluster.hosts.extra import SETTINGS
from expertflow.runtime.cluster.hosts.settings import ClusterSettings

from .on_ray import (
    ENGINE,
    MODEL,
    OPTIONS,
    ROOT,
    get,
    kill,
    open_stream,
    read_events,
    read_texts,
    run_command,
    start_command,
    texts_with,
    undisturbed_texts,
    wait_for,
    write_lines,
)

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
NODE: dict[str, Any] = {"object_store_memory": 80_000_000, "num_cpus": 1}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Replace the check of all tests: Ray starts and ends processes as it likes; `nodes` ends all of them."""


class Nodes:
    """A head without engines and two nodes with one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False}
        )
        self.address = str(self._cluster.address)
        self.head: Any = self._cluster.head_node
        self.others = [self.add() for _ in range(2)]

    def add(self) -> Any:
        """Return another node."""
        return self._cluster.add_node(**NODE)

    def remove(self, node: Any, kills: bool) -> None:
        """End a node; with `kills` by SIGKILL of its raylet."""
        self.others.remove(node)
        self._cluster.remove_node(node, allow_graceful=not kills)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Nodes on which the command has brought up two engines. The head's tables are on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_gcs_storage", "rocksdb")
        patch.setenv("RAY_gcs_storage_path", str(tmp_path_factory.mktemp("gcs")))
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        import ray

        nodes = Nodes()
        try:
            up = ["cluster", "up", "--model", str(MODEL), "--replicas", "2", "--port", str(PORT)]
            code, output, errors = run_command(*up, "--address", nodes.address, *OPTIONS)
            assert code == 0 and "2 of 2 replicas" in output, errors
            ray.init(address=nodes.address, namespace="test", log_to_driver=False)
            yield nodes
        finally:
            ray.shutdown()
            nodes.close()


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return undisturbed_texts()


def running() -> int:
    """Return how many engines serve."""
    from ray import serve

    states = serve.status().applications["expertflow"].deployments["Engines"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def engines_serve(count: int) -> bool:
    return running() == count == len(replica_processes("Engines"))


def test_the_front_gives_what_an_engine_gives(nodes: Nodes, expected: list[str]) -> None:
    wait_for(lambda: get(f"{URL}/ready") == 200)
    assert texts_with(URL, lambda: None) == expected


def test_a_killed_replica_does_not_show_in_the_streams(nodes: Nodes, expected: list[str]) -> None:
    assert texts_with(URL, lambda: kill(replica_processes("Engines")[0])) == expected
    wait_for(lambda: engines_serve(2))


def test_a_killed_front_takes_its_http_streams_and_no_batch(nodes: Nodes, expected: list[str], tmp_path: Path) -> None:
    given, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(given)
    batch = start_command("batch", str(given), str(results), "--cluster", nodes.address)
    stream = read_events(open_stream(URL, 0))
    next(stream)
    kill(replica_processes("Front")[0])
    with pytest.raises((AssertionError, OSError)):
        list(stream)
    _, errors = batch.communicate(timeout=300)
    assert batch.returncode == 0, errors
    assert read_texts(results) == expected
    wait_for(lambda: get(f"{URL}/ready") == 200)
    assert "".join(read_events(open_stream(URL, 1))) == expected[1], "the front is back"


def test_a_batch_survives_the_death_of_a_replica(nodes: Nodes, expected: list[str], tmp_path: Path) -> None:
    given, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(given)
    batch = start_command("batch", str(given), str(results), "--cluster", nodes.address)
    wait_for(lambda: results.exists() and results.stat().st_size > 0 or batch.poll() is not None)
    kill(replica_processes("Engines")[0])
    _, errors = batch.communicate(timeout=300)
    assert batch.returncode == 0, errors
    assert read_texts(results) == expected
    wait_for(lambda: engines_serve(2))


def test_a_node_that_dies_does_not_show_in_the_streams(nodes: Nodes, expected: list[str]) -> None:
    """The raylet is killed, and with it everything on its node; another node takes its place."""
    victim = nodes.others[0]
    assert texts_with(URL, lambda: nodes.remove(victim, kills=True)) == expected
    nodes.others.append(nodes.add())
    wait_for(lambda: engines_serve(2))


def test_a_drained_node_loses_nothing(nodes: Nodes, expected: list[str]) -> None:
    """A third node takes the replica of the drained one."""
    drained = nodes.others[0]
    nodes.others.append(nodes.add())
    before = set(replica_processes("Engines"))
    assert texts_with(URL, lambda: drain(nodes.address, drained.node_id)) == expected
    wait_for(lambda: engines_serve(2) and len(before & set(replica_processes("Engines"))) == 1)
    nodes.remove(drained, kills=False)
    assert texts_with(URL, lambda: None) == expected


def drain(address: str, node_id: str) -> None:
    """Drain a node as an operator does before maintenance."""
    words = ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "maintenance"]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, *words]
    subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)


def test_a_head_that_dies_and_comes_back_interrupts_no_stream(nodes: Nodes, expected: list[str]) -> None:
    """Its process is killed under streams, and started again from its tables on disk before the nodes give it up."""
    engines = replica_processes("Engines")
    assert texts_with(URL, nodes.head.kill_gcs_server) == expected
    nodes.head.start_gcs_server()
    wait_for(lambda: engines_serve(2))
    assert replica_processes("Engines") == engines, "no engine was started again"
    kill(engines[0])
    wait_for(lambda: engines_serve(2) and replica_processes("Engines") != engines)
    assert texts_with(URL, lambda: None) == expected


def test_the_number_of_replicas_follows_the_load(nodes: Nodes, expected: list[str]) -> None:
    """Forty streams at once leave some waiting, which brings a second engine; without work it goes again."""
    bounds = ScalingBounds(min_replicas=1, max_replicas=2, queue_age_s=0.2, up_after_s=0.5, down_after_s=5.0)
    settings = ClusterSettings(model=str(MODEL), engine=ENGINE, scaling=bounds)
    from expertflow.runtime.cluster.hosts.deploying import HttpAddress, deploy

    deploy(settings, HttpAddress("127.0.0.1", PORT))
    wait_for(lambda: engines_serve(1))
    with ThreadPoolExecutor(40) as threads:
        texts = threads.map(lambda number: "".join(read_events(open_stream(URL, number % 8))), range(40))
        wait_for(lambda: engines_serve(2))
        assert list(texts) == expected * 5
    wait_for(lambda: engines_serve(1))


def test_the_example_of_serve_deploy_fits_its_schema() -> None:
    from expertflow.runtime.cluster.hosts.settings import read_settings
    from ray.serve.schema import ServeDeploySchema

    for content in serve_configs():
        schema = ServeDeploySchema.model_validate(content)
        (application,) = schema.applications
        assert application.import_path == "expertflow.cluster:app"
        read_settings(application.args).config()


def serve_configs() -> list[dict[str, Any]]:
    folder = ROOT / "examples" / "deploy"
    inner = yaml.safe_load((folder / "rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    return [yaml.safe_load((folder / "cluster.yaml").read_text()), yaml.safe_load(inner)]
