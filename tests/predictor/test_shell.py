"""The predictor's shell: what comes in from scheduler and loader, what goes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow.configs.schema import Config
from expertflow.ipc.messages import Message, PredictRows, RowPredictions
from expertflow.tests.predictor.routes import same_everywhere, used_of
from expertflow.tests.scheduler.fake_engine import make_survey
from expertflow.workers.predictor.shell import PredictorShell
from msgspec.structs import replace

LAYERS, EXPERTS, TOP_K = 2, 6, 1


class FakeStage:
    """A stage without sockets."""

    def __init__(self, folder: Path, predictor: str) -> None:
        self.config = Config.load(predictor=predictor)
        self.sent: list[tuple[str, Message]] = []
        self._survey = replace(make_survey(folder), layers=LAYERS, experts=EXPERTS, top_k=TOP_K)

    def survey(self, _: object) -> Any:
        return self._survey

    def send(self, peer: str, message: Message) -> None:
        self.sent.append((peer, message))

    @contextmanager
    def span(self, name: str, **_: object) -> Iterator[None]:
        yield


QUESTION = PredictRows(number=7, token_ids=[3, 4, 3], rows=[10, 11, 12], positions=[5, 6, 7])


def test_rows_are_foreseen_one_by_one(tmp_path: Path) -> None:
    """In the order of the question, by what was learned of each token."""
    stage = FakeStage(tmp_path, "table")
    shell = PredictorShell(stage)  # pyright: ignore[reportArgumentType]
    for token, expert in ((3, 1), (4, 5)):
        for step in range(20):
            shell.receive([used_of(step, [token], same_everywhere(LAYERS, [expert]))])
    shell.receive([QUESTION])
    (peer, answer), *others = stage.sent
    assert peer == "scheduler" and isinstance(answer, RowPredictions) and not others
    assert (answer.number, answer.rows) == (7, [10, 11, 12])
    routes = np.frombuffer(answer.scores, dtype=np.uint8).reshape(3, LAYERS, EXPERTS)
    assert routes.argmax(axis=2).tolist() == [[1, 1], [5, 5], [1, 1]]


@pytest.mark.parametrize("predictor", ["noise", "opposite"])
def test_whoever_lies_answers_in_the_right_shape(tmp_path: Path, predictor: str) -> None:
    stage = FakeStage(tmp_path, predictor)
    shell = PredictorShell(stage)  # pyright: ignore[reportArgumentType]
    shell.receive([QUESTION])
    answer = stage.sent[0][1]
    assert isinstance(answer, RowPredictions) and len(answer.scores) == 3 * LAYERS * EXPERTS


def test_without_a_predictor_nobody_answers(tmp_path: Path) -> None:
    stage = FakeStage(tmp_path, "none")
    shell = PredictorShell(stage)  # pyright: ignore[reportArgumentType]
    shell.receive([QUESTION])
    assert not stage.sent
