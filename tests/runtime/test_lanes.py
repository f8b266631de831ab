"""One client and several engines, over real sockets and the real scheduler with a fake compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import EngineError
from expertflow.ipc.messages import Sampling
from expertflow.ipc.shared.rundir import ENGINES, RunDir
from expertflow.runtime.client.client import Client
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

TOKENS = 20
PROMPTS = [[1 + i] for i in range(24)]
EXPECTED = [continuation(prompt, TOKENS, Sampling(seed=i)) for i, prompt in enumerate(PROMPTS)]


class FakeGroup:
    """Two engines in the run directory of a group, as `EngineGroup` makes them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        run_dir = RunDir.create()
        stack.callback(run_dir.close)
        self.address = str(run_dir.path)
        base = run_dir.path / ENGINES
        base.mkdir(mode=0o700)
        config = Config(kv_memory="100KB", batch_size=2)
        self.engines = [stack.enter_context(FakeEngine(folder, config, base=base)) for _ in range(2)]

    def kill(self, number: int) -> None:
        """The whole engine, without a word."""
        self.engines[number].kill_scheduler()
        self.engines[number].run_dir.close()

    def ran(self, number: int) -> int:
        """Steps of this engine."""
        return sum(len(compute.ran) for compute in self.engines[number].computes)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[FakeGroup]:
    with ExitStack() as stack:
        yield FakeGroup(tmp_path, stack)


def results(client: Client, first_tokens: int = 0, then: object = None) -> list[list[int]]:
    batch = client.submit(PROMPTS, TOKENS, temperature=1.0, seed=0, eos_ids=[])
    for event in batch:
        first_tokens -= len(event.token_ids)
        if callable(then) and first_tokens < 0:
            then()
            then = None
    return [done.token_ids for done in batch.results(timeout_s=30)]


def test_a_batch_is_spread_and_comes_back_in_order(group: FakeGroup) -> None:
    """Seeds belong to the prompt's place in the batch, not to an engine."""
    with Client(group.address) as client:
        assert results(client) == EXPECTED
    assert min(group.ran(0), group.ran(1)) > TOKENS


def test_an_engine_that_does_nothing_keeps_only_what_it_was_handed(group: FakeGroup) -> None:
    """Half of a batch given to it at once would wait as long as it pleases."""
    group.engines[0].paused.set()
    with Client(group.address) as client:
        batch = client.submit(PROMPTS, TOKENS, eos_ids=[])
        ended = 0
        for event in batch:
            ended += event.finish_reason is not None
            if ended == len(PROMPTS) - 4:
                group.engines[0].paused.clear()
        assert len(batch.results()) == len(PROMPTS)


def test_a_dead_engines_requests_go_on_at_the_other(group: FakeGroup, caplog: pytest.LogCaptureFixture) -> None:
    """I4: also those of which tokens were delivered; who asked sees nothing but a line in the log."""
    with Client(group.address) as client:
        assert results(client, 100, lambda: group.kill(0)) == EXPECTED
        assert "goes on at the others" in caplog.text
        group.kill(1)
        with pytest.raises(EngineError, match="there is no engine"):
            results(client)


def test_requests_of_an_engine_that_is_stopped_go_on_at_the_other(group: FakeGroup) -> None:
    """Its scheduler refuses them in good order, before its run directory is gone."""
    with Client(group.address) as client:
        assert results(client, 100, lambda: group.engines[0].kill_scheduler(silent=False)) == EXPECTED


def test_a_restarted_scheduler_keeps_its_requests(group: FakeGroup) -> None:
    """A pause is no end: the engine goes on with what it had."""

    def restart() -> None:
        group.engines[1].kill_scheduler()
        group.engines[1].start_scheduler()

    with Client(group.address) as client:
        assert results(client, 100, restart) == EXPECTED
        wait_until(lambda: group.ran(1) > TOKENS)


def test_a_group_whose_engines_have_ended_has_nobody_to_talk_to(group: FakeGroup) -> None:
    for number in (0, 1):
        group.kill(number)
    with pytest.raises(EngineError, match="all engines of the group have ended"):
        Client(group.address)
