"""The paper's transformer as a forecaster: it reads token ids, and keeps keys and values of the rows that run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from ....ipc.messages import PredictStep, StepRouting
from ..base.forecaster import Forecaster, Part
from ..base.lru import LruDict
from ..base.model_shape import ModelShape
from ..base.predictor_file import check_belongs
from ..base.vocabulary import Spelling, tokenizer_spelling
from .file import FIRST, UNKNOWN, T5File, read_t5
from .module import T5Module, empty_cache, load_module, pad

REMEMBERED_ROWS = 256
CACHED_TOKENS = 16_384
"""Most cached tokens of all rows together; each has keys and values of 48 KB with the paper's sizes."""


class T5Forecaster(Forecaster):
    """Predicts from the ids of the prompt and of the decoded tokens of every row, without any routing."""

    follows_rows = True

    def __init__(self, file: T5File, spelling: Spelling | None = None) -> None:
        shape = file.header.shape
        super().__init__(shape.layers, shape.experts)
        self._window, self._spelling, self._named = shape.window, spelling, file.tokens.dtype.kind == "U"
        self._module = load_module(file)
        self._input_ids = {token: FIRST + index for index, token in enumerate(file.tokens.tolist())}
        self._rows: LruDict[T5Row] = LruDict(REMEMBERED_ROWS)

    def parts(self, request: PredictStep) -> Iterator[Part]:
        rows = np.array(request.rows, dtype=np.int64)
        runs = [np.flatnonzero(rows == row) for row in dict.fromkeys(request.rows)]
        single = np.array([run[0] for run in runs if len(run) == 1], dtype=np.int64)
        if len(single):
            yield single, np.stack([self._predict_decode(request, index) for index in single.tolist()])
        for run in runs:
            if len(run) > 1:
                input_ids = [self._input_id(request.token_ids[index]) for index in run.tolist()]
                yield from self._predict_prefill(run, input_ids)

    def _predict_decode(self, request: PredictStep, index: int) -> np.ndarray:
        """Predict the next token of a row, float32 [layers, experts]; without a history, by the token alone."""
        row, input_id = self._rows.get(request.rows[index]), self._input_id(request.token_ids[index])
        if row is None or not row.prompt or row.end != request.positions[index]:
            row = T5Row(prompt=[input_id])
        return row.forecast(self._module, input_id)

    @torch.no_grad()
    def _predict_prefill(self, run: np.ndarray, input_ids: list[int]) -> Iterator[Part]:
        """Predict a prompt, a window at a time."""
        for start in range(0, len(run), self._window):
            window = pad([input_ids[start : start + self._window]])
            yield run[start : start + self._window], torch.sigmoid(self._module(window, window)[0]).numpy()

    def _input_id(self, token: int) -> int:
        name = self._spelling(token) if self._named and self._spelling else token
        return self._input_ids.get(name, UNKNOWN)

    def learn(self, routing: StepRouting) -> None:
        """Append the tokens that ran to their rows; their routing is not used."""
        tokens = list(zip(routing.rows, routing.positions, routing.token_ids, strict=False))
        several = {row for row, count in zip(*np.unique(routing.rows, return_counts=True), strict=True) if count > 1}
        for number, position, token in tokens:
            row = self._rows.get(number)
            if row is None or position == 0 or row.end != position:
                row = T5Row()
            in_prompt = not row.prompt or (number in several and not row.decoded)
            row.append(self._input_id(token), in_prompt)
            self._rows[number] = row
        self._bound_caches()

    def _bound_caches(self) -> None:
        """Drop the caches of the oldest rows beyond the limit; they are computed again if the rows come back."""
        room = CACHED_TOKENS
        for row in self._rows.newest_first():
            room -= row.cached_tokens
            if room < 0:
                row.drop_cache()


@dataclass
class T5Row:
    """Input ids of one sequence, and keys and values of those that the decoder has read."""

    prompt: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    _encoded: Tensor | None = None
    """float32 [1, prompt, width]"""
    _cache: EncoderDecoderCache | None = None
    _cached: list[int] = field(default_factory=list)
    """Input ids whose keys and values are in the cache."""

    @property
    def end(self) -> int:
        """Position of the next token."""
        return len(self.prompt) + len(self.decoded)

    @property
    def cached_tokens(self) -> int:
        """Tokens for which the encoder's output or keys and values are held."""
        return len(self._cached) + (self._encoded.shape[1] if self._encoded is not None else 0)

    def append(self, input_id: int, in_prompt: bool) -> None:
        """Add a token that ran, as part of the prompt or after it."""
        (self.prompt if in_prompt else self.decoded).append(input_id)
        if in_prompt:
            self.drop_cache()

    def drop_cache(self) -> None:
        """Drop all tensors; `forecast` computes them again."""
        self._encoded = self._cache = None
        self._cached = []

    @torch.no_grad()
    def forecast(self, module: T5Module, input_id: int) -> np.ndarray:
        """Return float32 [layers, experts], the probabilities of the next token, whose input id is given."""
        window = module.shape.window
        if self._encoded is None:
            self._encoded = module.encode(pad([self.prompt[-window:]]))
        known = [*self.decoded, input_id]
        known = known[window_start(len(known), window) :]
        if self._cache is None or self._cached != known[: len(self._cached)] or len(self._cached) == len(known):
            self._cache, self._cached = empty_cache(), []
        fresh = torch.tensor(known[len(self._cached) :])
        self._cached = known
        return torch.sigmoid(module.decode(self._encoded, fresh, self._cache)[-1]).numpy()


def window_start(tokens: int, window: int) -> int:
    """Return the first of `tokens` that the decoder reads.

    It moves in jumps of half a window, so that a cache is of use for half a window.
    """
    half = max(window // 2, 1)
    return -(-max(tokens - window, 0) // half) * half


def load_t5(file: Path, model_shape: ModelShape) -> T5Forecaster:
    """Load a predictor for a model.

    Raise UsageError if the file holds no such predictor, CheckpointError if it belongs to another model.
    """
    predictor = read_t5(file)
    check_belongs(predictor.header, model_shape, str(file))
    return T5Forecaster(predictor, tokenizer_spelling(model_shape.folder))
