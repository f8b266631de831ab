"""`expertflow plan --device`: what an engine takes of a device's memory, and what of this machine's own."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.runtime.commands import plan
from expertflow.runtime.commands.plan import Plan
from expertflow.runtime.plan import proposal
from expertflow.runtime.plan.fit import Fit, budget_fit, model_needs
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import SlotTensor, Survey
from expertflow.workers.compute.device.memory import device_needs

GIB = 2**30


def survey() -> Survey:
    """40 experts of 1 GiB, and 2 GiB besides."""
    whole = fake_survey(layers=4, experts=10, stride_bytes=GIB, skeleton_bytes=2 * GIB)
    tensor = SlotTensor("up", [256, 512], "F32", GIB, 0)
    return msgspec.structs.replace(whole, tensors=[tensor])


def config(**options: object) -> Config:
    return Config.load(**{"model": "m", "device": "cuda", "tier": "host", "kv_memory": "1GiB", **options})


def fit(device_bytes: int = 0, available_bytes: int = 100 * GIB, **options: object) -> Fit:
    return budget_fit(survey(), config(**options), available_bytes, device_bytes)


def test_each_memory_has_its_own_sum() -> None:
    """What compute claims of the device when it starts, and CUDA's context; on the machine the host store."""
    found = fit(24 * GIB, expert_memory="50%")
    claimed = device_needs(survey(), config(), 20)
    assert found.device and found.device.parts.items() >= claimed.items()
    assert found.device.total_bytes == sum(claimed.values()) + found.device.parts["CUDA's context"]
    assert claimed["expert slots"] == 20 * GIB and claimed["the rest of the model"] == 2 * GIB
    assert found.total_bytes == 40 * GIB + found.process_bytes
    assert fit(tier="disk", host_memory="25%").host_bytes == 10 * GIB


def test_what_would_fit_the_device_is_said() -> None:
    """The advised size must fit, and one slot more must not."""
    found = fit(20 * GIB, expert_memory="50%")
    assert found.device and not found.fits
    words = plan.verdict(model_needs(survey()), found)
    option = words.partition("--expert-memory ")[2].split()[0]
    assert "does not fit cuda" in words and fit(20 * GIB, expert_memory=option).fits
    assert not fit(20 * GIB, expert_memory=f"{found.device.largest_slots_bytes + GIB}B").fits


def test_either_memory_can_be_too_small() -> None:
    assert fit(40 * GIB).fits and not fit(40 * GIB, available_bytes=30 * GIB).fits and not fit(3 * GIB).fits
    assert "own memory" in plan.verdict(model_needs(survey()), fit(40 * GIB, available_bytes=30 * GIB))
    assert "--expert-memory" not in plan.verdict(model_needs(survey()), fit(3 * GIB))


@pytest.mark.parametrize(
    ("memory", "code", "words"), [("", 0, "not known"), ("900GB", 0, "fits."), ("9GB", 1, "not fit")]
)
def test_plan_says_whether_the_device_has_room(
    memory: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proposal, "run_sizes", lambda config, path: survey())
    monkeypatch.setattr(proposal, "available_bytes", lambda: 100 * GIB)
    command = Plan(engine=config(), device_memory=memory)
    assert command.run() == code and words in capsys.readouterr().out
    assert Plan(engine=config(), device_memory=memory, json=True).run() == code
    assert json.loads(capsys.readouterr().out)["budgets"]["device"]["fits"] is (code == 0)


@pytest.mark.parametrize(("memory", "device"), [("24GB", "cpu"), ("50%", "cuda")])
def test_a_memory_that_means_nothing_is_refused(memory: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposal, "run_sizes", lambda config, path: survey())
    with pytest.raises(UsageError, match="device_memory"):
        Plan(engine=Config.load(model="m", device=device), device_memory=memory).run()


def test_a_plan_needs_no_torch() -> None:
    asked = "import sys, expertflow.runtime.plan.fit; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", asked], check=True)
