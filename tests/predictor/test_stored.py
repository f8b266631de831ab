"""Predictor files: what is written is read, and files of others are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, UsageError
from expertflow.tests.predictor.paths import (
    EXPERTS,
    LAYERS,
    TOP_K,
    ask,
    file_of,
    forecaster_of,
    made_up_trace,
    untrained,
)
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.base.predictor_file import FORMAT_VERSION
from expertflow.workers.predictor.path.file import read_path, write_path
from expertflow.workers.predictor.path.forecaster import PathForecaster, load_path
from expertflow.workers.predictor.registry import FILE_NAME, make_forecaster
from expertflow.workers.predictor.training.path import default_shape

SHAPE = ModelShape(layers=LAYERS, experts=EXPERTS, top_k=TOP_K, fingerprint="abc")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    trace = made_up_trace()
    written = file_of(untrained(trace, noise=0.2), trace)
    header = msgspec.structs.replace(written.header, model="abc", figures={"decode_recall": 0.5})
    write_path(tmp_path / "p.npz", type(written)(header, written.weights, written.table))
    return tmp_path / "p.npz"


def rewritten(file: Path, **changes: object) -> Path:
    """The same file with another header."""
    with np.load(file) as npz:
        arrays = dict(npz)
    header = msgspec.json.decode(arrays["header"].tobytes()) | changes
    arrays["header"] = np.frombuffer(msgspec.json.encode(header), np.uint8)
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


def test_what_is_written_is_read(file: Path) -> None:
    trace = made_up_trace()
    loaded = load_path(file, SHAPE)
    assert isinstance(loaded, PathForecaster)
    assert read_path(file).header.figures == {"decode_recall": 0.5}
    named = PathForecaster(read_path(file), [f"Ġword{number}" for number in range(20)].__getitem__)
    original = forecaster_of(untrained(trace, noise=0.2), trace)
    coming = ask(trace, 0, list(range(9)))
    assert np.allclose(named.forecast_tokens(coming), original.forecast_tokens(coming), atol=5e-3)


def test_another_version_or_kind_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match=f"version {FORMAT_VERSION + 1}; wanted"):
        load_path(rewritten(file, version=FORMAT_VERSION + 1), SHAPE)
    with pytest.raises(UsageError, match="kind 'paper'"):
        load_path(rewritten(file, version=FORMAT_VERSION, kind="paper"), SHAPE)


@pytest.mark.parametrize("other", [{"layers": 4}, {"experts": 16}, {"top_k": 1}])
def test_a_model_of_other_sizes_is_refused(file: Path, other: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="was trained for 3 layers of 8 experts, top 2; this model has"):
        load_path(file, replace(SHAPE, **other))


def test_another_model_of_the_same_sizes_is_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match="was trained for the model abc; this one is xyz"):
        load_path(file, ModelShape(layers=LAYERS, experts=EXPERTS, top_k=TOP_K, fingerprint="xyz"))


def test_unknown_fingerprints_are_not_compared(file: Path) -> None:
    load_path(file, ModelShape(layers=LAYERS, experts=EXPERTS, top_k=TOP_K))
    load_path(rewritten(file, model=""), SHAPE)


def test_what_is_no_predictor_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "other.npz", experts=np.zeros(3))
    for wrong in ("text", "other.npz", "missing"):
        with pytest.raises(UsageError, match="predictor"):
            load_path(tmp_path / wrong, SHAPE)
    torn = file.read_bytes()
    file.write_bytes(torn[: len(torn) // 2])
    with pytest.raises(UsageError, match="cannot be read as a predictor"):
        load_path(file, SHAPE)


def test_a_file_without_an_array_is_refused(file: Path) -> None:
    with np.load(file) as npz:
        arrays = {name: npz[name] for name in npz.files if name != "table.seen"}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="table.seen is missing"):
        load_path(file, SHAPE)


def test_the_model_folder_may_carry_the_predictor(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shape = ModelShape(layers=LAYERS, experts=EXPERTS, top_k=TOP_K, folder=str(folder))
    with pytest.raises(UsageError, match="needs a trained file"):
        make_forecaster(Config.load(predictor="path"), shape)
    file.rename(folder / FILE_NAME)
    assert isinstance(make_forecaster(Config.load(predictor="path"), shape), PathForecaster)
    named = Config.load(predictor="path", predictor_file=str(folder / FILE_NAME))
    assert isinstance(make_forecaster(named, SHAPE), PathForecaster)


def test_spelling_matters_only_where_tokens_have_strings() -> None:
    trace = made_up_trace()
    assert default_shape(trace).grams > 0
    assert default_shape(replace(trace, vocabulary=None)).grams == 0
