"""SIGTERM and Ctrl-C to `serve` at every moment: it ends in order, a second one at once, and nothing is left."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow import Client, Completion
from expertflow.errors import EngineError, ExpertFlowError
from expertflow.runtime.service.stop_signals import stop_signals
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.processes import MODEL, PATIENCE_S, started
from expertflow.tests.runtime.test_commands_ctrl_c import wait_for
from expertflow.tests.system.awaiting import await_tokens

pytestmark = [
    pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here"),
    pytest.mark.timeout(600),
]
SERVE = ["serve", "--model", str(MODEL), "--log-level", "info"]
SLOW_LINK = ["--tier", "host", "--link-rate", "2MB"]
STARTS = "stage loader starts"
TOKENS = 200
TERMINATED, INTERRUPTED = 143, 130


def end(process: subprocess.Popen[str], number: signal.Signals, times: int = 1) -> str:
    """Send a signal so often, and return the rest of stderr once the process has ended."""
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2)
    return process.communicate(timeout=PATIENCE_S)[1]


def nothing_left(runtime_base: Path) -> bool:
    return not [*runtime_base.glob("*expertflow-*"), *runtime_base.glob("engine")]


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGTERM, "surveying", TERMINATED),
        pytest.param(signal.SIGINT, "surveying", INTERRUPTED, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "starting for", TERMINATED, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, STARTS, TERMINATED, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, STARTS, INTERRUPTED, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "compute.1", TERMINATED, marks=pytest.mark.slow),
    ],
)
def test_while_it_starts(number: signal.Signals, moment: str, code: int, runtime_base: Path) -> None:
    with started(*SERVE) as process:
        wait_for(process.stderr, moment)
        told = end(process, number)
        assert process.returncode == code, told
        assert "Traceback" not in told, told
    assert nothing_left(runtime_base)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, INTERRUPTED, marks=pytest.mark.slow)]
)
def test_open_requests_end_and_new_ones_are_refused(number: signal.Signals, code: int, runtime_base: Path) -> None:
    address = str(runtime_base / "engine")
    with started(*SERVE, "--address", address, "--drain", "300") as process:
        wait_for(process.stdout, "Stop: Ctrl-C")
        with Client(address) as client, Client(address) as other:
            batch = client.submit([[5, 9, 11]] * 6, max_new_tokens=TOKENS, eos_ids=[])
            await_tokens(batch, 1)
            process.send_signal(number)
            wait_for(process.stderr, "the engine drains")
            wait_until(lambda: isinstance(outcome_of_one(other), EngineError))  # until the scheduler has heard it
            assert all(len(done.token_ids) == TOKENS for done in batch.results(timeout_s=200))
        told = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == code, told
    assert nothing_left(runtime_base)


def outcome_of_one(client: Client) -> Completion | ExpertFlowError:
    return client.submit([[5]], max_new_tokens=1).results(timeout_s=100, return_errors=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)])
def test_a_second_signal_stops_at_once(number: signal.Signals, code: int, runtime_base: Path) -> None:
    """The link is so slow that the open request would take minutes; `--drain` would wait for it."""
    address = str(runtime_base / "engine")
    with started(*SERVE, *SLOW_LINK, "--address", address, "--drain", "3000") as process:
        wait_for(process.stdout, "Stop: Ctrl-C")
        with Client(address) as client:
            batch = client.submit([[5, 9, 11]], max_new_tokens=400, eos_ids=[])
            await_tokens(batch, 1)
            told = end(process, number, times=2)
            (lost,) = batch.results(timeout_s=100, return_errors=True)
            assert isinstance(lost, EngineError)
        assert process.returncode == code, told
    assert nothing_left(runtime_base)


@pytest.mark.usefixtures("default_handler")
def test_two_signals_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals("patience") as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.asked.is_set() and signals.interrupted and not signals.urged.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert signals.urged.is_set()
    assert capfd.readouterr().err == "patience\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Ctrl-C as in a terminal, as in tests/runtime/conftest.py."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
