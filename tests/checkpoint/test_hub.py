"""Hub ids, against a hub on this machine: what is fetched, what is not, and what is said when it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError, EngineError, ExpertFlowError, UsageError
from expertflow.ipc.messages import AskSurvey, Progress
from expertflow.tests.checkpoint.fake_hub import COMMITS, GATED, MODEL, FakeHub, fake_hub
from expertflow.tests.models.families import save_tiny
from expertflow.workers.checkpoint import hub
from expertflow.workers.checkpoint.resolve import resolve_folder
from expertflow.workers.surveyor.entry import answer_survey_request, plan_sizes
from expertflow.workers.surveyor.surveyor import survey_folder

UNWANTED = [
    "pytorch_model.bin", "model.Q4_K_M.gguf", "README.md", "consolidated.safetensors", "model.fp16.safetensors",
    "original/model.safetensors", "metal/model.bin", "onnx/config.json",
]  # fmt: skip
WANTED = ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"]
WANTED += ["tokenizer_config.json", "chat_template.jinja", "merges.txt"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two revisions, and everything that lies about in repositories."""
    root = tmp_path_factory.mktemp("published")
    for seed, revision in enumerate(COMMITS):
        save_tiny("olmoe", root / revision, seed=seed, max_shard_size="60KB", dtype=torch.bfloat16)
        for name in UNWANTED + WANTED:
            file = root / revision / name
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                file.write_text(json.dumps({"name": name}))
    return {revision: root / revision for revision in COMMITS}


@pytest.fixture
def remote(published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and a client of it with an empty cache."""
    with fake_hub(dict(published)) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.fixture
def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def shards(folder: Path) -> list[str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return sorted(set(index["weight_map"].values()))


def refused(kind: type[ExpertFlowError], model: str = MODEL, revision: str = "") -> ExpertFlowError:
    with pytest.raises(ExpertFlowError) as caught:
        resolve_folder(model, revision)
    assert type(caught.value) is kind and caught.value.where == model and caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


# What is fetched


def test_what_is_needed_is_fetched_and_nothing_else(remote: FakeHub, published: dict[str, Path]):
    """Many repositories carry their weights twice or thrice: hundreds of gigabytes for nothing."""
    folder = resolve_folder(MODEL)
    assert sorted(remote.asked) == sorted([*WANTED, *shards(published["main"])])
    assert folder.name == COMMITS["main"] and not list(folder.glob("*/"))[1:]
    for name in remote.asked:
        assert (folder / name).read_bytes() == (published["main"] / name).read_bytes()


def test_a_snapshot_of_links_is_a_checkpoint_like_any_other(remote: FakeHub, published: dict[str, Path]):
    """The client keeps the bytes elsewhere: sizes, headers and reads must be those of the files, not of the links."""
    folder = resolve_folder(MODEL)
    assert all((folder / name).is_symlink() for name in shards(folder))
    linked, plain = survey_folder(folder), survey_folder(published["main"])
    assert linked.places == plain.places and linked.fingerprint == plain.fingerprint
    assert linked.checkpoint_bytes == plain.checkpoint_bytes > 10_000


def test_a_repository_with_two_sets_of_weights(remote: FakeHub, published: dict[str, Path], tmp_path: Path):
    """The whole file goes before the index, as in a folder: shards of another save would be fetched for nothing."""
    both = Path(shutil.copytree(published["main"], tmp_path / "both"))
    save_tiny("olmoe", tmp_path / "whole", seed=5, dtype=torch.bfloat16)
    shutil.copyfile(tmp_path / "whole" / "model.safetensors", both / "model.safetensors")
    remote.revisions["main"] = both
    assert plan_sizes(MODEL).checkpoint_bytes == (both / "model.safetensors").stat().st_size
    folder = resolve_folder(MODEL)
    assert sorted(remote.asked) == sorted([*WANTED, "model.safetensors"])
    assert survey_folder(folder).files == [str(folder / "model.safetensors")]
    assert survey_folder(folder).fingerprint == survey_folder(tmp_path / "whole").fingerprint


def test_what_is_cached_is_not_fetched_again(remote: FakeHub):
    first = resolve_folder(MODEL)
    remote.asked.clear()
    (first / "tokenizer.json").unlink()
    assert resolve_folder(MODEL) == first
    assert remote.asked in ([], ["tokenizer.json"]), "its bytes are still in the cache"
    assert (first / "tokenizer.json").is_file()


@pytest.mark.parametrize("revision", ["older", COMMITS["older"]])
def test_a_revision_fetches_the_files_of_its_commit(remote: FakeHub, published: dict[str, Path], revision: str):
    folder = resolve_folder(MODEL, revision)
    assert folder.name == COMMITS["older"]
    name = shards(folder)[0]
    assert (folder / name).read_bytes() == (published["older"] / name).read_bytes()


def test_progress_ends_at_all_bytes_of_the_weights(remote: FakeHub, published: dict[str, Path]):
    """Of a total known from the start: a bar that fills up again with every file says nothing."""
    told: list[tuple[int, int]] = []
    resolve_folder(MODEL, report=lambda done, total: told.append((done, total)))
    weights_bytes = sum((published["main"] / name).stat().st_size for name in shards(published["main"]))
    assert {total for _, total in told} == {weights_bytes}
    assert max(done for done, _ in told) >= weights_bytes


def test_a_plan_fetches_the_configuration_alone(remote: FakeHub, published: dict[str, Path]):
    sizes = plan_sizes(MODEL)
    assert sorted(remote.asked) == ["config.json", "model.safetensors.index.json"]
    weights_bytes = sum((published["main"] / name).stat().st_size for name in shards(published["main"]))
    assert (sizes.weights_here, sizes.checkpoint_bytes) == (False, weights_bytes)
    resolve_folder(MODEL)
    whole = plan_sizes(MODEL)
    assert (whole.weights_here, whole.skeleton_bytes) == (True, sizes.skeleton_bytes)


def test_the_surveyor_says_how_far_it_is(remote: FakeHub):
    told: list[Progress] = []
    survey = answer_survey_request(AskSurvey(MODEL, "older", "auto"), told.append)
    assert Path(survey.folder).name == COMMITS["older"]
    assert told and all(MODEL in each.what and 0 <= each.done <= each.total for each in told)


# Without a network


@pytest.mark.parametrize("revision", ["", "main", COMMITS["main"]])
def test_a_cached_model_needs_no_network(remote: FakeHub, revision: str, request: pytest.FixtureRequest):
    folder = resolve_folder(MODEL, revision)
    request.getfixturevalue("go_offline")
    remote.revisions.clear()
    assert resolve_folder(MODEL, revision) == folder
    assert plan_sizes(MODEL, revision).weights_here


def test_half_a_model_is_not_enough_offline(remote: FakeHub, request: pytest.FixtureRequest):
    """A plan has left the configuration in the cache; an engine needs the weights as well."""
    plan_sizes(MODEL)
    request.getfixturevalue("go_offline")
    assert "HF_HUB_OFFLINE is set" in refused(UsageError).what
    assert not plan_sizes(MODEL).weights_here


def test_offline_and_not_cached(remote: FakeHub, go_offline: None):
    error = refused(UsageError)
    assert "not in the hub's cache" in error.what and "HF_HUB_OFFLINE" in error.remedy


def test_a_hub_that_cannot_be_reached_is_said_with_the_reason(remote: FakeHub, monkeypatch: pytest.MonkeyPatch):
    """What the operating system says must be shown: no route, no name, refused."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    error = refused(EngineError)
    assert "cannot be reached" in error.what and "refused" in error.what and "connection" in error.remedy


# What the hub refuses


def test_a_gated_model_asks_for_a_login(remote: FakeHub):
    remote.gated = True
    error = refused(UsageError)
    assert GATED.rstrip(".") in error.what and "hf auth login" in error.remedy


def test_a_model_that_is_not_on_the_hub_is_refused(remote: FakeHub):
    error = refused(UsageError, "some-people/nothing")
    assert "not on the hub, or private" in error.what and "Invalid username" in error.what


def test_a_revision_that_does_not_exist_is_refused(remote: FakeHub):
    error = refused(UsageError, revision="newest")
    assert "no revision 'newest'" in error.what and "Invalid rev id" in error.what


@pytest.mark.parametrize("name", ["no body/no\tthing", "-a/b", "a/b.git"])
def test_what_cannot_be_a_hub_id(remote: FakeHub, name: str):
    assert "cannot be a hub id" in refused(UsageError, name).what


# What is refused before gigabytes are downloaded


def edited(published: dict[str, Path], remote: FakeHub, tmp_path: Path) -> Path:
    """A copy of the main revision that the hub serves in its place."""
    folder = Path(shutil.copytree(published["main"], tmp_path / "edited"))
    remote.revisions["main"] = folder
    return folder


def test_no_weights_in_safetensors(remote: FakeHub, published: dict[str, Path], tmp_path: Path):
    folder = edited(published, remote, tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    error = refused(UsageError)
    assert "has no model.safetensors; it has .bin, .gguf" in error.what


def test_a_repository_without_config_json_is_refused(remote: FakeHub, published: dict[str, Path], tmp_path: Path):
    (edited(published, remote, tmp_path) / "config.json").unlink()
    assert "has no config.json" in refused(UsageError).what


def test_a_quantisation_that_cannot_be_read(remote: FakeHub, published: dict[str, Path], tmp_path: Path):
    folder = edited(published, remote, tmp_path)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match="'gptq'"):
        resolve_folder(MODEL)
    assert not [name for name in remote.asked if name.endswith(".safetensors")]


def test_a_quantisation_that_only_names_of_tensors_tell(remote: FakeHub, published: dict[str, Path], tmp_path: Path):
    index = edited(published, remote, tmp_path) / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("down_proj.weight", "down_proj.qweight"))
    with pytest.raises(CheckpointError, match="'gptq or awq'"):
        resolve_folder(MODEL)
    assert not [name for name in remote.asked if name.endswith(".safetensors")]


def test_a_disk_that_is_too_small(remote: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "_free_bytes", lambda folder: 1000)
    with pytest.raises(EngineError, match="to be downloaded, but only 1.0 kB are free"):
        resolve_folder(MODEL)
    assert not [name for name in remote.asked if name.endswith(".safetensors")]


def test_the_built_in_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page of the documentation names it so; whoever installed a wheel stands in some other folder."""
    monkeypatch.chdir(tmp_path)
    assert (resolve_folder("examples/model") / "config.json").is_file()
    (tmp_path / "examples" / "model").mkdir(parents=True)
    assert resolve_folder("examples/model") == (tmp_path / "examples" / "model").resolve()
