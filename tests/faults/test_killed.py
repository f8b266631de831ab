"""SIGKILL to the supervisor of a real engine, and to a client: what was theirs is gone, and others go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.processes import MODEL, heed_ctrl_c, started
from expertflow.tests.runtime.test_commands_ctrl_c import wait_for
from expertflow.tests.runtime.test_kills import MARK, marked_processes
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

CLIENT = Path(__file__).with_name("serving.py")
pytestmark = pytest.mark.timeout(600)


def holders(path: Path) -> list[int]:
    """Processes that have a descriptor or a socket below this path."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = [os.readlink(entry) for entry in folder.iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(path)) for link in links):
            found.append(int(folder.parent.name))
    sockets = Path("/proc/net/unix").read_text()
    return found + ([-1] if str(path) in sockets else [])


@pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here")
@pytest.mark.parametrize(
    ("moment", "delay_s"),
    [
        ("surveying", 0.5),
        pytest.param("starting for", 0.0, marks=pytest.mark.slow),
        pytest.param("stage loader starts", 0.1, marks=pytest.mark.slow),
        pytest.param("stage loader starts", 1.0, marks=pytest.mark.slow),
        pytest.param("every stage is ready", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_supervisor_leaves_no_process_socket_or_descriptor(
    moment: str, delay_s: float, runtime_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next start at the same address works while the last processes of the old one may still be ending."""
    mark, address = uuid.uuid4().hex, runtime_base / "engine"
    monkeypatch.setenv(MARK, mark)
    words = ["serve", "--model", str(MODEL), "--address", str(address), "--log-level", "info"]
    with started(*words) as process:
        wait_for(process.stderr, moment)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        killed_s = time.monotonic()
        monkeypatch.delenv(MARK)
        with started(*words) as successor:
            wait_until(lambda: not marked_processes(mark))
            print(f"gone after {time.monotonic() - killed_s:.2f} s")  # noqa: T201 - for docs/reliability.md
            wait_for(successor.stdout, "Stop: Ctrl-C")
            successor.terminate()
            successor.communicate()
            assert successor.returncode == 0
    assert not holders(address) and not address.exists()


def test_the_work_of_a_killed_client_is_cancelled(tmp_path: Path) -> None:
    """Its rows, its places in the queue and its KV memory are free for others, whose tokens do not change."""
    save_tiny("olmoe", tmp_path)
    prompts = random_prompts(2, VOCABULARY, seed=3)
    with Supervisor(Config.load(model=tmp_path, expert_memory="25%", batch_size=4)) as engine:
        words = [sys.executable, "-P", str(CLIENT), engine.address, "900"]
        with (
            Client(engine.address) as client,
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c) as other,
        ):
            assert other.stdout is not None and other.stdout.readline() == "token\n"
            batch = client.submit(prompts, max_new_tokens=40, eos_ids=[])
            other.kill()
            await_tokens(batch, 1)  # all rows were taken
            done = [list(each.token_ids) for each in batch.results(timeout_s=200)]
        wait_until(lambda: open_work(engine) == (0, 0, 0))
        counters = engine.snapshot().stages["scheduler"].counters
        assert counters["abandoned"] == 4
    reference = Reference(tmp_path)
    assert done == [reference.greedy(prompt, 40) for prompt in prompts]


def open_work(engine: Supervisor) -> tuple[int | float, ...]:
    counters = engine.snapshot().stages["scheduler"].counters
    return counters["open"], counters["running"], counters["kv_reserved_bytes"]
