"""A GPU that cannot be used is refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow import Config, Supervisor
from expertflow.errors import UsageError
from expertflow.runtime.engine.group import configs_of
from expertflow.runtime.engine.preflight import cuda_version
from expertflow.runtime.verify import subprocess as checking


def test_what_torch_is_built_for_is_known_without_it() -> None:
    assert cuda_version() == (torch.version.cuda or "")


def test_cuda_without_cuda_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not even looked for."""
    monkeypatch.setattr("expertflow.runtime.engine.preflight.cuda_version", lambda: "")
    with pytest.raises(UsageError, match="device = cuda:1: .* Install a CUDA build of torch, or use device = cpu"):
        Supervisor(Config.load(model=tmp_path / "none", device="cuda:1")).__enter__()


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:"}, "device"),
        ({"device": "cuda", "kv_memory": "10%"}, "kv_memory"),
        ({"device": "cuda", "tier": "host", "link_rate": "8GB"}, "link_rate"),
        ({"device": "cuda", "tier": "host", "link": "dma"}, "link"),
        ({"device": "cuda:0,"}, "device"),
        ({"device": "cpu,cuda:0"}, "device"),
        ({"device": "cuda,cuda:00"}, "device"),
        ({"device": "cuda:0,cuda:1", "trace": "folder"}, "device"),
        ({"hang_timeout_s": 0.01}, "hang_timeout_s"),
        ({"link": "dma"}, "link"),
        ({"link": "dma", "tier": "host"}, "link"),
        ({"link": "dma", "link_rate": "8GB"}, "link_rate"),
        ({"link": "usb", "tier": "host", "link_rate": "8GB"}, "configuration (cpu-disk)"),
        ({"tier": "host", "link_latency_us": 10.0}, "link_latency_us"),
        ({"tier": "host", "link_rate": "8GB", "link_latency_us": -1.0}, "link_latency_us"),
    ],
)
def test_a_configuration_that_no_device_can_follow_is_refused(wrong: dict[str, Any], place: str) -> None:
    with pytest.raises(UsageError) as raised:
        Config.load(model="m", **wrong)
    assert raised.value.where == place and raised.value.remedy


def test_several_devices_are_no_single_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Start an EngineGroup"):
        Supervisor(Config.load(model=tmp_path, device="fake:1, fake:2")).start()


@pytest.mark.parametrize(
    ("given", "each"),
    [
        ({"tier": "host", "host_memory": "100%"}, "100%"),
        ({"tier": "disk", "host_memory": "100%"}, "50.000000%"),
        ({"tier": "disk", "host_memory": "3GB"}, "1500000000B"),
    ],
)
def test_engines_share_the_machine(given: dict[str, str], each: str) -> None:
    """A whole host store is one for all; another would be twice what was asked for."""
    configs = configs_of(Config.load(model="m", device="cuda:0, cuda:1", compute_threads=3, **given))
    assert [(config.device, config.host_memory) for config in configs] == [("cuda:0", each), ("cuda:1", each)]
    assert all(config.compute_threads == 3 for config in configs)


def test_cores_are_spread_over_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a thread for every core would make all of them wait for each other."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(9))
    configs = configs_of(Config.load(model="m", device="cuda:0,cuda:1,cuda:2"))
    assert [config.compute_threads for config in configs] == [2, 2, 2]


def test_what_ran_on_a_device_is_verified_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another device, or the CPU, rounds otherwise."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setattr(checking.sys, "executable", str(program))
    assert list(checking.run_checks(tmp_path, Config.load(model="m", device="fake:3"))) == []
    assert (tmp_path / "asked").read_text().split()[-3:] == ["fake:3", "honour", "dequantised"]
