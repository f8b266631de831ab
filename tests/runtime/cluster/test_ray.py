"""A cluster of two nodes on a real Ray (`make test-cluster`): the same answers, also when a replica is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import expertflow
import pytest
import yaml
from expertflow.runtime.client import Client
from expertflow.runtime.engine.supervisor import Supervisor

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

ROOT = Path(expertflow.__file__).resolve().parent
MODEL = ROOT / "examples" / "model"
PROMPTS = [line for line in (ROOT / "examples" / "prompts.txt").read_text().splitlines() if line][:8]
ENGINE = {"expert_memory": "2MB", "compute_threads": 1, "dtype": "float32"}
PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
TOKENS = 40
PATIENCE_S = 300.0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Replace the check of all tests: Ray starts and ends processes as it likes; `cluster` ends all of them."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with a replica each; yields Ray's address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from expertflow.runtime.cluster.hosts.application import build_application
    from ray import serve
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        ray.init(address=nodes.address, namespace="test", log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        settings = {"model": str(MODEL), "replicas": 2, "engine": ENGINE, "cpus_per_replica": 0.5}
        serve.run(build_application(settings), name="expertflow", route_prefix="/")
        wait_for(lambda: get("/ready") == 200)
        yield str(nodes.address)
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Texts of one engine, undisturbed: greedy ones and seeded ones in turn."""
    from expertflow.configs.schema import Config

    with Supervisor(Config.load(model=str(MODEL), **ENGINE)) as engine, Client(engine.address) as client:
        return [
            client.generate([prompt], max_new_tokens=TOKENS, seed=number, temperature=0.8 * (number % 2))[0].text
            for number, prompt in enumerate(PROMPTS)
        ]


def body_of(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "model", "prompt": PROMPTS[number], "max_tokens": TOKENS, "temperature": 0.8 * (number % 2),
        "top_p": 1, "top_k": 0, "seed": number, **more,
    }  # fmt: skip


def get(path: str) -> int:
    try:
        return urllib.request.urlopen(URL + path, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)


def open_stream(number: int) -> Any:
    data = json.dumps(body_of(number, stream=True)).encode()
    request = urllib.request.Request(URL + "/v1/completions", data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=PATIENCE_S)


def read_events(stream: Any) -> Iterator[str]:
    """Yield the texts of a stream; fails unless it ends as a whole one does."""
    for line in stream:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            yield event["choices"][0]["text"]
    raise AssertionError("the stream was cut off")


def replicas() -> list[int]:
    """Return the processes of engines' replicas."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"ray::ServeReplica:expertflow:Engines"):
                found.append(int(entry.name))
    return found


def both_serve() -> bool:
    from ray import serve

    states = serve.status().applications["expertflow"].deployments["Engines"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING") == 2


def test_the_front_gives_what_an_engine_gives(cluster: str, expected: list[str]) -> None:
    texts = ["".join(read_events(open_stream(number))) for number in range(len(PROMPTS))]
    assert texts == expected


def test_a_killed_replica_does_not_show_in_the_streams(cluster: str, expected: list[str]) -> None:
    streams = [open_stream(number) for number in range(len(PROMPTS))]
    readers = [read_events(stream) for stream in streams]
    texts = [next(reader) for reader in readers]  # all run, on both replicas
    os.kill(replicas()[0], signal.SIGKILL)
    texts = [text + "".join(reader) for text, reader in zip(texts, readers, strict=True)]
    assert texts == expected
    wait_for(both_serve)


def test_a_batch_over_the_cluster_has_one_result_a_line(cluster: str, expected: list[str], tmp_path: Path) -> None:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body_of(number)}
        for number in range(len(PROMPTS))
    ]
    given, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "expertflow", "batch", str(given), str(results), "--cluster", cluster]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: results.exists() and results.stat().st_size > 0 or run.poll() is not None)
    os.kill(replicas()[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, errors
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in rows}
    assert len(rows) == len(PROMPTS)
    assert [texts[str(number)] for number in range(len(PROMPTS))] == expected
    wait_for(both_serve)


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
