"""An older commit as a contender: it is this repository's, and what is missing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.benchmarks.comparison.kernels import BEFORE_KERNELS
from expertflow.benchmarks.contenders import older
from expertflow.benchmarks.contenders.base import Case, Missing, Task
from expertflow.benchmarks.contenders.older import OlderExpertFlow, unpack_commit
from expertflow.benchmarks.contenders.ours import ExpertFlow
from expertflow.benchmarks.contenders.running import run

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

MODEL = Path(__file__).parents[2] / "examples" / "model"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of a package with two versions of one constant; its cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    for version in ("first", "second"):
        (folder / "__init__.py").write_text(f"VERSION = {version!r}\n")
        git(folder, "add", "-A")
        git(folder, "-c", "user.name=n", "-c", "user.email=e@e", "commit", "-qm", version)
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_older_package_is_imported_with_the_contenders_of_today(repository: Path) -> None:
    folder = unpack_commit("HEAD~1", repository)
    assert folder.name == git(repository, "rev-parse", "HEAD~1")
    code = "import expertflow, contenders.base as base; print(expertflow.VERSION, base.Case.__name__)"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-P", "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["first", "Case"]


def test_a_commit_is_unpacked_once_and_never_by_halves(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpack_commit("HEAD", repository)
    (folder / "expertflow" / "mark").touch()
    assert (unpack_commit("HEAD", repository) / "expertflow" / "mark").exists()

    def interrupted(*words: object) -> None:
        raise Missing("interrupted")

    monkeypatch.setattr(older, "run", interrupted)
    with pytest.raises(Missing, match="interrupted"):
        unpack_commit("HEAD~1", repository)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[3]))
    assert (unpack_commit("HEAD~1", repository) / "expertflow" / "__init__.py").exists()


@pytest.mark.parametrize("commit", ["0123456789", "--help", ""])
def test_a_commit_that_is_not_there_is_named(repository: Path, commit: str) -> None:
    with pytest.raises(Missing, match="not in this clone") as caught:
        unpack_commit(commit, repository)
    assert "git fetch --unshallow" in str(caught.value)


def test_without_a_clone_or_git_the_reason_is_said(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Missing, match="not a git repository"):
        unpack_commit("HEAD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="no git here"):
        unpack_commit("HEAD", repository)


def test_it_runs_the_script_of_today_on_the_older_package(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older, "unpack_commit", lambda commit: Path("/unpacked") / commit)
    contender = OlderExpertFlow("abc", "25%", kv_memory="1GiB")
    assert contender.name == "commit abc 25%"
    assert contender.environment() == {"PYTHONPATH": "/unpacked/abc"}
    assert contender.command(Path())[1:] == ["-P", "-m", "contenders.ours"]
    assert contender.options(0) == {"expert_memory": "25%", "kv_memory": "1GiB"}


@pytest.mark.slow
def test_ours_and_the_commit_draw_the_same_tokens_and_prefill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        unpack_commit(BEFORE_KERNELS)
    except Missing as reason:
        pytest.skip(str(reason))
    prompts = [[5, 9, 11, 40], [7, 8, 9, 10]]
    cases = [Case(prompts=prompts, steps=6), Case(prompts=prompts, prefills=3, state="prefill")]
    drawn = []
    for contender in (ExpertFlow("100%"), OlderExpertFlow(BEFORE_KERNELS, "100%")):
        done = run(contender, Task(model=str(MODEL), cases=cases), 120)
        assert done.answer is not None, done.failure
        decoded, prefilled = done.answer.cases
        assert (len(decoded.steps_s), len(prefilled.steps_s), prefilled.tokens) == (5, 3, [])
        drawn.append(decoded.tokens)
    assert drawn[0] == drawn[1] and [len(row) for row in drawn[0]] == [6, 6]
