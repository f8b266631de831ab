"""`cluster up`, `batch --cluster auto`, `status` and `down` as a user types them, on a Ray that `up` starts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.runtime.cluster.hosts.local_ray import processes_of, recall, remember, start_ray

from .on_ray import MODEL, OPTIONS, get, kill, listening_at, read_texts, run_command, undisturbed_texts, write_lines

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

PORT = 8133


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Replace the check of all tests: Ray starts and ends processes as it likes; `down` ends all of them."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, so that the cluster of whoever runs the tests is not touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("work")
        run_command("cluster", "down")


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1 as the kernel shows it, also to sockets of IPv6; and ::1."""


def last_folder() -> str:
    """Return the temporary folder of the Ray that was started last."""
    cluster = recall()
    assert cluster is not None and cluster.folder
    return cluster.folder


def test_a_cluster_comes_up_runs_a_batch_and_goes_down(cache: Path) -> None:
    """Two replicas are asked for and there is one host: one runs, the other waits, and nobody waits for it."""
    up = ["cluster", "up", "--model", str(MODEL), "--port", str(PORT), *OPTIONS]
    code, output, errors = run_command(*up, "--replicas", "2")
    assert code == 0, errors
    assert "1 of 2 replicas" in output and "Waiting: one host has one replica" in output
    code, output, errors = run_command("cluster", "status")
    assert code == 0 and "1 running" in output, errors
    assert listening_at(processes_of(last_folder())) <= LOOPBACK
    given, results = cache / "in.jsonl", cache / "out.jsonl"
    write_lines(given)
    code, _, errors = run_command("batch", str(given), str(results), "--cluster", "auto")
    assert code == 0, errors
    assert read_texts(results) == undisturbed_texts()
    code, output, errors = run_command(*up, "--replicas", "1")
    assert code == 0 and "1 of 1 replicas" in output, errors
    assert get(f"http://127.0.0.1:{PORT}/ready") == 200
    folder = last_folder()
    assert processes_of(folder)
    code, _, errors = run_command("cluster", "down")
    assert code == 0, errors
    assert processes_of(folder) == set()
    code, _, errors = run_command("cluster", "status")
    assert code != 0 and "no cluster is running" in errors


def test_a_head_that_has_died_is_told_and_taken_away(cache: Path) -> None:
    """A Ray without its GCS answers nobody: `status` says so at once, and `down` ends what is left of it."""
    remember(start_ray("127.0.0.1"))
    folder = last_folder()
    listed = subprocess.run(["pgrep", "-f", f"gcs_server.*{folder}/"], capture_output=True, text=True, check=True)
    kill(int(listed.stdout.split()[0]))
    code, _, errors = run_command("cluster", "status")
    assert code != 0 and "no Ray answers there" in errors
    code, _, errors = run_command("cluster", "down")
    assert code == 0, errors
    assert processes_of(folder) == set()
