"""Runs two models over the same text, both with few expert slots, and compares what they say of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ...ipc.messages import DropUnit, RequestRow, RunStep, Sampling, StepRouting
from ...ipc.shared.available import available_bytes
from ...workers.checkpoint.survey import Survey
from ...workers.compute.sampling.failure import RowFailed
from ...workers.model.unit import Unit
from ...workers.surveyor.surveyor import survey_folder
from ...workers.traces.routing import read_routing
from ..verify.local_runtime import LocalRuntime

CHUNK_TOKENS = 64
"""Tokens of a row; each but its first is judged by those before it in the row."""
ROWS = 16
MEMORY_SHARE = 0.35
"""Share of the free memory that the slots of one model may take."""

Report = Callable[[str, int, int], None]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Differences of a model from the original, over the tokens of a text."""

    tokens: int
    perplexity: float
    """Perplexity of the model on this text."""
    original_perplexity: float
    mean_kl: float
    """Mean Kullback-Leibler divergence of its distributions from the original's, in nats."""
    same_top_token: float
    """Share of the tokens at which both models' likeliest token is the same."""
    changed_routes: float
    """Share of routes (an expert chosen for a token in a layer) that the original does not take."""


def compare_models(original: Path, model: Path, token_ids: Sequence[int], report: Report) -> Comparison:
    """Compare two model folders of the same architecture and vocabulary over a text.

    Raises UsageError for a text of less than two tokens or models that differ in shape, CheckpointError for a folder
    that cannot be read.
    """
    chunks = [list(token_ids[at : at + CHUNK_TOKENS]) for at in range(0, len(token_ids), CHUNK_TOKENS)]
    chunks = [chunk for chunk in chunks if len(chunk) > 1]
    if not chunks:
        raise UsageError("the text has fewer than two tokens", "text", "Give a longer one")
    surveys = [survey_folder(folder) for folder in (original, model)]
    _check_alike(*surveys)
    sums = _Sums()
    with _Reader(surveys[0]) as first, _Reader(surveys[1]) as second:
        for at in range(0, len(chunks), ROWS):
            rows = chunks[at : at + ROWS]
            for expected, before, after in zip(_expected(rows), first.read(rows), second.read(rows), strict=True):
                sums.add(expected, before, after)
            report("comparing", min(at + ROWS, len(chunks)), len(chunks))
    return sums.comparison()


def few_slots(survey: Survey) -> int:
    """Return the slots for a model that may be larger than the memory."""
    slots = int(MEMORY_SHARE * available_bytes()) // survey.stride_bytes
    return max(min(slots, survey.expert_count), survey.top_k)


def _check_alike(original: Survey, model: Survey) -> None:
    facts = [(each.layers, each.experts, each.top_k, each.vocabulary) for each in (original, model)]
    if facts[0] != facts[1]:
        what = f"differs in layers, experts, top-k or vocabulary from {original.folder}: {facts[1]} and {facts[0]}"
        raise UsageError(what, model.folder, "Compare a model with the one that it was made from")


class _Step(msgspec.Struct):
    """Answer of a model at one step: logits [rows, vocabulary] and routes [tokens, layers, top-k]."""

    logits: Tensor
    routes: np.ndarray | None


class _Reader:
    """A model that reads rows of tokens: whatever it would say, the next token of the row follows."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._rows: list[list[int]] = []
        self._logits = torch.empty(0)
        self._runtime = LocalRuntime(survey, few_slots(survey), choose=self._choose)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runtime.__exit__(None, None, None)

    def read(self, rows: list[list[int]]) -> Iterator[_Step]:
        """Yield what the model says after each token; rows that are over leave, in the order of `rows`."""
        self._rows = rows
        admitted = [RequestRow(number, row[:1], 0, Sampling()) for number, row in enumerate(rows)]
        over: list[int] = []
        for index in range(1, max(map(len, rows))):
            admit = admitted if index == 1 else []
            _, routing = self._runtime.run(RunStep(number=index, unit=1, admit=admit, drop=over))
            yield _Step(self._logits, self._routes(routing))
            over = [number for number, row in enumerate(rows) if len(row) == index + 1]
        self._runtime.order(DropUnit(1))

    def _routes(self, routing: StepRouting | None) -> np.ndarray | None:
        return None if routing is None else read_routing(routing, self._survey.layers, self._survey.experts)

    def _choose(self, step: RunStep, unit: Unit, logits: Tensor) -> list[int | RowFailed]:
        self._logits = logits.float()
        return [self._rows[number][step.number] for number in unit.numbers]


def _expected(rows: list[list[int]]) -> Iterator[Tensor]:
    """Yield the next token of each row that has one, int64 [rows], step by step."""
    for index in range(1, max(map(len, rows))):
        yield torch.tensor([row[index] for row in rows if len(row) > index])


class _Sums:
    """Sums over the tokens that were read."""

    def __init__(self) -> None:
        self._tokens = self._same = self._routes = self._kept_routes = 0
        self._loss = self._original_loss = self._kl = 0.0

    def add(self, expected: Tensor, before: _Step, after: _Step) -> None:
        """Add one step: the expected tokens [rows] and what the original and the model said."""
        original, model = before.logits.log_softmax(-1), after.logits.log_softmax(-1)
        self._tokens += len(expected)
        self._original_loss -= float(original.gather(1, expected[:, None]).sum())
        self._loss -= float(model.gather(1, expected[:, None]).sum())
        self._kl += float(torch.nn.functional.kl_div(model, original, log_target=True, reduction="sum"))
        self._same += int((original.argmax(-1) == model.argmax(-1)).sum())
        if before.routes is not None and after.routes is not None:
            self._routes += after.routes.size
            self._kept_routes += int((after.routes[..., None] == before.routes[..., None, :]).any(-1).sum())

    def comparison(self) -> Comparison:
        """Return the means."""
        return Comparison(
            tokens=self._tokens,
            perplexity=math.exp(self._loss / self._tokens),
            original_perplexity=math.exp(self._original_loss / self._tokens),
            mean_kl=max(self._kl / self._tokens, 0.0),
            same_top_token=self._same / self._tokens,
            changed_routes=1 - self._kept_routes / self._routes if self._routes else 0.0,
        )
