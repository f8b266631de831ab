"""A GPU that cannot be used is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow import Config, Supervisor
from expertflow.errors import UsageError
from expertflow.runtime import checking
from expertflow.runtime.devices import cuda_version


def test_what_torch_is_built_for_is_known_without_it() -> None:
    assert cuda_version() == (torch.version.cuda or "")


def test_cuda_without_cuda_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not even looked for."""
    monkeypatch.setattr("expertflow.runtime.devices.cuda_version", lambda: "")
    with pytest.raises(UsageError, match="device cuda:1: .* Install a CUDA build of torch, or use device = cpu"):
        Supervisor(Config.load(model=tmp_path / "none", device="cuda:1")).__enter__()


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:"}, "device"),
        ({"device": "cuda", "kv_memory": "10%"}, "kv_memory"),
        ({"device": "cuda", "tier": "host", "link_rate": "8GB"}, "link_rate"),
    ],
)
def test_a_configuration_that_no_device_can_follow_is_refused(wrong: dict[str, str], place: str) -> None:
    with pytest.raises(UsageError) as raised:
        Config.load(model="m", **wrong)
    assert raised.value.where == place and raised.value.remedy


def test_what_ran_on_a_device_is_verified_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another device, or the CPU, rounds otherwise."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setattr(checking.sys, "executable", str(program))
    assert list(checking.run_checks(tmp_path, Config.load(model="m", device="fake:3"))) == []
    assert (tmp_path / "asked").read_text().split()[-1] == "fake:3"
