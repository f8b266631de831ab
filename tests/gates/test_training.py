"""Gates learn what can be learned, are judged by sequences they have not seen, and refuse what is too little."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from expertflow.errors import UsageError
from expertflow.tests.gates.lessons import POSITIONS, ROWS, write_lessons
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.tests.traces.streams import EXPERTS, LAYERS, TOP_K, WIDTH
from expertflow.workers.gates.examples import split_examples
from expertflow.workers.gates.files import load_gates
from expertflow.workers.gates.training import GateOptions, recall_at, train_gates
from expertflow.workers.traces.reading import read_hidden
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = GateOptions(bottleneck=32, epochs=12, learning_rate=2e-2, batch_tokens=64)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lessons")
    write_lessons(folder)
    return folder


def test_gates_learn_to_tell_the_next_layer(lessons: Path, tmp_path: Path) -> None:
    """Chance is 0.2. The made-up layers depend on nothing but what went into the layer before."""
    told: list[tuple[str, int, int]] = []
    file = tmp_path / "gates.safetensors"
    report = train_gates(lessons, file, OPTIONS, lambda *news: told.append(news))
    assert report.recall_at_k.shape == (LAYERS - 1,) and report.recall_at_k.min() > 0.85
    assert (report.recall_at_2k >= report.recall_at_k).all()
    assert report.tokens + report.held_out_tokens < ROWS * POSITIONS and told[-1][1] == told[-1][2]
    states = torch.zeros(3, WIDTH)
    survey = msgspec.structs.replace(fake_survey(LAYERS, EXPERTS), fingerprint="f" * 32)
    gates = load_gates(file, survey)
    ranking = gates.ranking(0, states, 4)
    assert ranking is not None and ranking.shape == (3, 4) and ranking.dtype == np.int64
    assert gates.ranking(LAYERS - 1, states, 4) is None
    assert gates.ranking(0, torch.zeros(3, WIDTH + 1), 4) is None


def test_training_is_the_same_each_time(lessons: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_gates(lessons, tmp_path / name, GateOptions(bottleneck=4, epochs=1))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sequences_are_dealt_out_whole(lessons: Path) -> None:
    trace, hidden = read_hidden(lessons)
    parts = split_examples(trace, hidden, (0.1, 0.2))
    assert [len(part) for part in parts] == [ROWS // 10 * POSITIONS, ROWS // 5 * POSITIONS, ROWS * 7 // 10 * POSITIONS]
    seen = np.concatenate([part.states.numpy() for part in parts])
    assert np.array_equal(np.sort(seen.ravel()), np.sort(hidden.states.ravel()))
    for part in parts:
        assert torch.equal(part.inputs(torch.tensor([3]))[1, 0], part.states[3, 1].float())
        assert torch.equal(part.targets(torch.tensor([3]))[1, 0], part.routes[3, 2])


def test_recall_counts_what_was_named_up_to_a_depth(lessons: Path) -> None:
    """Someone who names all that is right, behind one that is wrong."""
    trace, hidden = read_hidden(lessons)
    (examples,) = split_examples(trace, hidden, ())
    routes = examples.routes.numpy()

    def ranking(layer: int, states: torch.Tensor, depth: int) -> np.ndarray:
        right = routes[: len(states), layer + 1]
        wrong = np.array([next(each for each in range(EXPERTS) if each not in row) for row in right])
        return np.column_stack([wrong, right])[:, :depth]

    recall = recall_at(examples, ranking, [1, 2, 3])
    assert np.allclose(recall, [[0, 1 / TOP_K, 1]] * (LAYERS - 1))


def test_too_little_to_learn_from_is_refused(tmp_path: Path) -> None:
    write_lessons(tmp_path, positions=3)
    with pytest.raises(UsageError, match="too few to learn from"):
        train_gates(tmp_path, tmp_path / "gates")
    assert not (tmp_path / "gates").exists()


def test_a_file_that_cannot_be_written_is_named(lessons: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        train_gates(lessons, tmp_path / "no folder" / "gates", GateOptions(bottleneck=2, epochs=1))
