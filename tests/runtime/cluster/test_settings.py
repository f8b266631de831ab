"""Settings of a cluster: what is refused before anything starts, and what survives the way to the hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import EngineError, UsageError
from expertflow.runtime.cluster.hosts import control, extra, local_ray
from expertflow.runtime.cluster.hosts.control import ClusterOptions, address_of, start_cluster
from expertflow.runtime.cluster.hosts.local_ray import LocalRay, end_ray, forget, recall, remember, start_ray
from expertflow.runtime.cluster.hosts.settings import engine_options, read_settings
from expertflow.runtime.command_line.registry import parse

OPTIONS: dict[str, Any] = {
    "min_replicas": 1, "max_replicas": 1, "address": "", "host": "127.0.0.1", "port": 8000, "routing": "experts",
    "slack": 4, "key_file": None, "preset": "cpu-disk",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def options(**more: Any) -> ClusterOptions:
    return ClusterOptions(**(OPTIONS | more))


def test_options_of_an_engine_survive_the_way_to_a_host() -> None:
    config = Config.load("cpu-host", model="m", expert_memory="3GB", batch_size=3)
    settings = options(preset="cpu-host", min_replicas=2, max_replicas=5).settings(config)
    assert engine_options(config, "cpu-host") == {"expert_memory": "3GB", "batch_size": 3}
    told = read_settings(msgspec.json.decode(msgspec.json.encode(settings)))
    assert told == settings and told.config() == config
    assert told.scaling is not None and (told.scaling.min_replicas, told.scaling.max_replicas) == (2, 5)


@pytest.mark.parametrize(
    "content, what",
    [
        ({"model": "m", "replica": 2}, "unknown field `replica`"),
        ({"model": "m", "routing": "fastest"}, "Invalid enum value 'fastest'"),
        ({}, "required field `model`"),
    ],
)
def test_a_wrong_file_is_refused_by_field(content: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_settings(content)


def test_an_option_that_engines_do_not_have_is_named() -> None:
    with pytest.raises(UsageError, match="is no option of an engine: expert_memry"):
        read_settings({"model": "m", "engine": {"expert_memry": "3GB"}}).config()


@pytest.mark.parametrize(
    "more, model, what",
    [
        ({"host": "10.0.0.1"}, "m", "would let everyone in"),
        ({"host": "0.0.0.0", "key_file": Path("keys")}, "m", "must be the address of one network"),
        ({}, "", "no model given"),
        ({"min_replicas": 3, "max_replicas": 2}, "m", "must be from 1 to max_replicas"),
    ],
)
def test_what_cannot_be_started_is_refused_first(
    more: dict[str, Any], model: str, what: str, monkeypatch: pytest.MonkeyPatch, no_process: None
) -> None:
    monkeypatch.setattr(control, "require_ray", lambda: None)  # it is no part of [dev]
    monkeypatch.setattr(control, "_deploy", refuse)
    with pytest.raises(UsageError, match=what):
        start_cluster(Config.load(model=model), options(**more))


def refuse(*args: object) -> None:
    raise AssertionError("it was deployed")


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], object] = lambda name: None  # noqa: E731 - the type is what is replaced
    monkeypatch.setattr(extra.importlib.util, "find_spec", find)
    with pytest.raises(UsageError, match=r"pip install 'expertflow-runtime\[ray\]'"):
        parse(["cluster", "status"]).run()


def test_nothing_imports_ray_before_a_command_needs_it() -> None:
    assert "ray" not in sys.modules


@pytest.mark.parametrize("text", ["0", "x", "2..x", "..3"])
def test_a_number_of_replicas_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(["cluster", "up", "--model", "m", "--replicas", text]).run()


def test_a_cluster_is_remembered_until_it_ends() -> None:
    with pytest.raises(UsageError, match="no cluster is running"):
        address_of("")
    remember(LocalRay(address="127.0.0.1:1", folder="/tmp/none", url="http://127.0.0.1:8000"))
    assert address_of("") == "127.0.0.1:1" and address_of("10.0.0.1:2") == "10.0.0.1:2"
    forget()
    assert recall() is None


def test_a_ray_that_does_not_start_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho 'the port is taken' >&2; exit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(local_ray.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="could not start: the port is taken"):
        start_ray("127.0.0.1")


def test_the_end_of_a_ray_takes_its_own_processes_and_no_others(tmp_path: Path) -> None:
    """One of them has changed its command line, as Ray's do; its parent tells whose it is."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    script = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    started = [
        subprocess.Popen([sys.executable, "-c", script, f"--session={folder}/x"], stdout=subprocess.PIPE, text=True)
        for folder in (own, other)
    ]
    children = [int(process.stdout.readline()) for process in started if process.stdout]
    end_ray(str(own))
    assert started[0].wait(30) and not own.exists()
    assert not is_running(children[0]) and is_running(children[1]) and started[1].poll() is None
    end_ray(str(other))
    assert started[1].wait(30)
    for process in started:
        if process.stdout is not None:
            process.stdout.close()


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("has_token", [True, False])
def test_client_and_cluster_are_told_one_mode_where_ray_has_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_token: bool
) -> None:
    variables = {"HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: name)
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    extra.require_ray()
    assert variables.get("RAY_AUTH_MODE") == ("token" if has_token else None)
