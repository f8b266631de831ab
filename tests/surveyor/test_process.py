"""`python -m expertflow.workers.surveyor`, and hub ids of snapshots that are already on this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import ErrorFacts
from expertflow.tests.models.families import save_tiny
from expertflow.tests.surveyor.child import run_python
from expertflow.workers.checkpoint.resolve import resolve_folder
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.surveyor import survey_checkpoint

HUB_ID = "some-people/some-experts"
CHOICE = '{"experts_in": "dequantised"}'
COMMITS = {"main": "0" * 40, "older": "1" * 40}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as the hub's client leaves it: two snapshots of one repository."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    for number, (name, commit) in enumerate(COMMITS.items()):
        save_tiny("olmoe", repository / "snapshots" / commit, seed=number)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return cache


def sized_in_process(cache: Path, model: str, revision: str, answer: Path) -> tuple[int, str, str]:
    arguments = ["-m", "expertflow.workers.surveyor", model, revision, "auto", "honour", CHOICE, "", str(answer)]
    return run_python(arguments, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})


def test_code_0_and_a_survey_that_needs_no_torch_to_read(hub_cache: Path, tmp_path: Path):
    code, output, errors = sized_in_process(hub_cache, HUB_ID, "older", tmp_path / "answer")
    assert code == 0, errors
    survey = msgspec.msgpack.decode((tmp_path / "answer").read_bytes(), type=Survey)
    folder = hub_cache / f"models--{HUB_ID.replace('/', '--')}" / "snapshots" / COMMITS["older"]
    assert survey == survey_checkpoint(str(folder))
    assert output == ""


def test_code_2_and_the_facts_of_the_error(hub_cache: Path, tmp_path: Path):
    """A hub id that is not on this machine, without a network."""
    code, _, errors = sized_in_process(hub_cache, "some-people/other-experts", "", tmp_path / "answer")
    assert code == 2, errors
    facts = msgspec.msgpack.decode((tmp_path / "answer").read_bytes(), type=ErrorFacts)
    assert facts.code == UsageError.code
    assert facts.where == "some-people/other-experts"
    assert "hub" in facts.what
    assert "local folder" in facts.remedy
    assert "Traceback" not in errors


@pytest.fixture
def offline(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    return hub_cache


@pytest.mark.parametrize(("revision", "commit"), [("", COMMITS["main"]), *COMMITS.items()])
def test_a_cached_hub_id_resolves_by_revision(offline: Path, revision: str, commit: str):
    assert resolve_folder(HUB_ID, revision).name == commit


@pytest.mark.parametrize(("name", "revision"), [(HUB_ID, "newest"), ("nobody/nothing", "")])
def test_other_hub_ids_are_refused(offline: Path, name: str, revision: str):
    with pytest.raises(UsageError, match="not in the hub's cache") as caught:
        resolve_folder(name, revision)
    assert caught.value.where == name


def test_a_local_folder_wins_over_a_hub_id(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / HUB_ID).mkdir(parents=True)
    assert resolve_folder(HUB_ID) == (tmp_path / HUB_ID).resolve()
