"""The life of several engines together, with real processes that are small."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError, CheckpointError, EngineError
from expertflow.ipc.messages import Progress
from expertflow.ipc.shared.attachments import FOLDER, Attachments, attachment_path
from expertflow.runtime.client.watching import Watcher, find_engine
from expertflow.runtime.engine.group import EngineGroup
from expertflow.runtime.engine.group_resources import GroupResources
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.tests.runtime.fakes import fail_next_setup, fake_plans, heard, wait_until

DEVICES = ("fake:1", "fake:2")
STAGES = ("compute", "loader")


@pytest.fixture(autouse=True)
def only_engines_of_this_test(monkeypatch: pytest.MonkeyPatch, runtime_base: object) -> None:
    monkeypatch.setattr("expertflow.runtime.client.watching.COMMON_BASE", runtime_base)


def fake_group(
    behaviour: dict[str, str] | None = None, report: Callable[[Progress], None] | None = None, **options: object
) -> EngineGroup:
    given = {"model": "nowhere", "device": ",".join(DEVICES), "tier": "host", **options}
    return EngineGroup(Config.load(**given), report, plans=fake_plans(STAGES, behaviour))


def stores_of(engine: Supervisor) -> set[int]:
    """The inodes of the host stores that its loader was given."""
    folder = f"/proc/{engine.snapshot().facts['loader']['pid']}/fd"
    names = [name for name in os.listdir(folder) if os.readlink(f"{folder}/{name}").startswith("/memfd:host")]
    return {os.stat(f"{folder}/{name}").st_ino for name in names}


def test_one_store_for_all_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """I5: with room for one store only, a second would be refused; and it outlives the engine that filled it."""
    survey, reports = fake_survey(), []
    room_bytes = survey.expert_count * survey.stride_bytes
    group = fake_group(report=reports.append)

    def left_bytes() -> int:
        store = group._shared.store.arena if group._shared and group._shared.store else None
        return room_bytes - (store.size_bytes if store else 0)

    monkeypatch.setattr("expertflow.runtime.engine.resources.available_bytes", left_bytes)
    with group:
        one, other = group.engines.values()
        [store] = stores_of(one)
        assert stores_of(other) == {store}
        one.stop()
        other.kill("loader")
        wait_until(lambda: heard(other, "compute", "loader joined") == 2)
        assert stores_of(other) == {store}
    allocated = [news.stage for news in reports if "shared memory" in news.what]
    surveyed = [news.stage for news in reports if news.what.startswith("surveying") and news.done]
    assert allocated == ["supervisor (fake:1)"] and surveyed == ["checkpoint (fake:1)"]


def test_a_group_is_one_to_whoever_looks_for_it() -> None:
    """Its engines' own run directories lie within; what a client brings along is found in each of them."""
    with fake_group() as group:
        assert find_engine("") == group.address
        with Watcher(group.address) as watcher:
            wait_until(lambda: len(watcher.snapshot().stages) == 4)
        assert set(group.snapshot().restarts) == {f"{device}/{stage}" for device in DEVICES for stage in STAGES}
        attachments = Attachments(Path(group.address))
        name = attachments.put(b"an image")
        for engine in group.engines.values():
            assert attachment_path(Path(engine.address, FOLDER), name).read_bytes() == b"an image"
        attachments.close()
        address = group.address
    assert not os.path.exists(address)


def test_the_group_has_failed_when_no_engine_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """One that ends by itself is a line in the log while others go on."""
    with fake_group({"loader": "die again"}, restart_limit=0) as group:
        for number, device in enumerate(DEVICES):
            assert group.failure is None and not group.wait(0)
            group.engines[device].kill("loader")
            wait_until(lambda device=device: group.engines[device].failure)
            if number == 0:
                with caplog.at_level(logging.WARNING):
                    assert not group.wait(0.1) and not group.wait(0)
                assert caplog.text.count("1 of 2 go on") == 1
        with pytest.raises(EngineError, match="died 1 times"):
            group.wait(30)
        assert group.failure is not None


@pytest.mark.parametrize(
    ("behaviour", "kind"), [({"compute": "refuse survey"}, CheckpointError), ({"loader": "refuse"}, BudgetError)]
)
def test_the_first_engines_refusal_is_what_the_user_sees(behaviour: dict[str, str], kind: type[Exception]) -> None:
    """The other, which waits for its survey, or has begun beside it, ends too."""
    group = fake_group(behaviour)
    with pytest.raises(kind):
        group.start()
    assert not os.path.exists(group.address)
    group.stop()


@pytest.mark.parametrize("device", DEVICES)
def test_an_interrupt_while_starting_leaves_nothing(device: str) -> None:
    """The leak fixture looks: whichever engine is starting, and whoever waits for it, is taken down."""

    def interrupt(news: Progress) -> None:
        if news.stage == f"loader ({device})":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_group({"loader": "progress"}, interrupt).start()


def test_a_group_starts_once_at_a_time_and_again_later() -> None:
    """Of the disk tier here: a place that one engine's loader fills must not be another's."""
    group = fake_group(tier="disk", host_memory="50%")
    for _ in range(2):
        with group:
            with pytest.raises(EngineError, match="running already"):
                group.start()
            one, other = map(stores_of, group.engines.values())
            assert len(one) == len(other) == 1 and not one & other


def test_whoever_waits_for_an_engine_that_gave_up_is_told() -> None:
    shared = GroupResources(whole_store=True)
    told: list[BaseException | None] = []
    waiting = threading.Thread(target=lambda: told.append(shared.surveyed.exception()))
    waiting.start()
    shared.fail_waiting()
    waiting.join(10)
    shared.close()
    assert isinstance(told[0], EngineError)


def policies(group: EngineGroup) -> list[str]:
    return [engine.resources.config.policy for engine in group.engines.values()]


def test_a_group_reloads_one_engine_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    """What an operator's command does, and then what a program does that holds the group."""
    with fake_group() as group, Watcher(group.address) as watcher, caplog.at_level(logging.INFO):
        watcher.reload({"policy": "lru"})
        assert policies(group) == ["lru", "lru"]
        group.reload(policy="lfu")
        assert policies(group) == ["lfu", "lfu"] and group.config.policy == "lfu"
        told = [each.message for each in caplog.records if "reload" in each.message]
        steps = [(device, policy) for policy in ("lru", "lfu") for device in DEVICES]
        lines = [[f"{device}: reload: policy = {policy}", f"{device}: reload done"] for device, policy in steps]
        assert told == [line for pair in lines for line in pair]
        assert set(group.snapshot().restarts.values()) == {0}


@pytest.mark.parametrize("by", ["watcher", "group"])
def test_an_engine_that_fails_is_named_and_no_engine_stays_changed(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_group(policy="lfu") as group, Watcher(group.address) as watcher:
        cause = BudgetError("needs 1 GB, and only 1 MB is available", "shared memory 'slots'")
        fail_next_setup(monkeypatch, group.engines["fake:2"], cause)
        order = partial(watcher.reload, {"policy": "lru"}) if by == "watcher" else partial(group.reload, policy="lru")
        with pytest.raises(BudgetError, match="needs 1 GB") as caught:
            order()
        assert caught.value.where == "shared memory 'slots' of fake:2"
        assert caught.value.remedy == "fake:1 has its earlier settings again"
        assert policies(group) == ["lfu", "lfu"] and group.config.policy == "lfu"
        order()
        assert policies(group) == ["lru", "lru"]


def test_a_reload_leaves_out_engines_that_have_ended() -> None:
    with fake_group() as group, Watcher(group.address) as watcher:
        one, other = group.engines.values()
        one.stop()
        watcher.reload({"policy": "lru"})
        group.reload(reads_in_flight=2)
        assert (other.resources.config.policy, other.resources.config.reads_in_flight) == ("lru", 2)
        other.stop()
        for order in (partial(watcher.reload, {"policy": "lfu"}), partial(group.reload, policy="lfu")):
            with pytest.raises(EngineError, match="group"):
                order()


def test_a_store_in_place_is_no_reason_to_refuse_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """With slots on a device the host store takes nearly all of the machine's memory, and stays where it is."""
    with fake_group() as group:
        monkeypatch.setattr("expertflow.runtime.engine.resources.available_bytes", lambda: 0)
        group.reload(policy="lru")
        assert policies(group) == ["lru", "lru"]
