"""Why steps waited, in runs of real engines with one known cause each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.waits.report import WaitReport
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import random_prompts

Run = Callable[..., WaitReport]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers of 16 experts, 4 a token, 18 kB each."""
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """What `expertflow why` says of a run with these options."""

    def run(tokens: int, **options: Any) -> WaitReport:
        timeline = str(tmp_path / "timeline.json")
        config = Config.load(model=folder, timeline=timeline, units="one", grouping="off", prediction="on", **options)
        with Supervisor(config) as engine, Client(engine.address) as client:
            client.generate(random_prompts(3, VOCABULARY), max_new_tokens=tokens, eos_ids=[])
        capsys.readouterr()
        assert parse(["why", timeline, "--json"]).run() == 0
        report = msgspec.json.decode(capsys.readouterr().out, type=WaitReport)
        assert parse(["why", timeline, "--longest", "1"]).run() == 0
        assert f"waited {report.waits:,} times" in capsys.readouterr().out
        assert abs(sum(report.blames.values()) - report.waited_ns) < 1000 < report.waited_ns < report.steps_ns
        return report

    return run


def share(report: WaitReport, *blames: str) -> float:
    return sum(report.blames.get(name, 0) for name in blames) / report.waited_ns


def test_waits_for_a_predictor_that_is_wrong_on_purpose_are_blamed_on_its_predictions(run: Run) -> None:
    """Taken at its word, what it brings in takes the link, and the slots of what is used."""
    wrong = run(
        40,
        predictor="opposite", belief="literal", hints="off", expert_memory="50%", batch_size=1,
        tier="host", link_rate="20MB",
    )  # fmt: skip
    on_link, evicted = "wrong prediction on the link", "evicted for a wrong prediction"
    assert share(wrong, on_link, evicted) > 0.3
    assert wrong.blames[on_link] > 0 < wrong.blames[evicted]
    victims = [each.evicted for wait in wrong.longest for each in wait.experts if each.blamed == evicted]
    assert victims and all(each and each.cause == "prediction" and each.for_unused for each in victims)
    assert any(use.unused and use.cause == "prediction" for wait in wrong.longest for use in wait.link)


def test_waits_for_a_slow_link_are_blamed_on_its_rate(run: Run) -> None:
    """Some 300 kB a step, at 0.8 MB a second: no prediction could hide that behind a step of a few milliseconds."""
    slow = run(5, predictor="table", expert_memory="40%", batch_size=3, tier="host", link_rate="800KB")
    assert share(slow, "link rate") > 0.5
    assert all(each.filled is not None for wait in slow.longest for each in wait.experts)


def test_waits_for_too_few_slots_are_blamed_on_capacity(run: Run) -> None:
    """A layer of a step wants 4 to 12 experts, and there are 2 slots: its own experts evict each other."""
    narrow = run(8, expert_memory="5%", batch_size=3)
    assert share(narrow, "capacity") > 0.9
    for each in [each for wait in narrow.longest for each in wait.experts]:
        assert each.slots == 2 and each.blamed == "capacity"
        assert each.evicted is None or each.evicted.cause in ("miss", "hint", "prediction")
