"""Logits of a prompt's positions, in pieces: those of a long prompt, [columns, vocabulary], never exist as a whole.

A prefill computes the logits of the newest position alone. For the others the body's last hidden states are kept, and
the model's own head is applied to slices of them. The head is what the model's class does after its body: a linear
layer, with some families a scale or a soft cap.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import RequestError

MAX_PIECE = 2**23
"""Logits of one piece: 32 MiB in float32."""


class SplitModel:
    """A causal model whose last hidden states are kept. Called like the model, it gives what the model gives."""

    def __init__(self, model: Any) -> None:
        """Wrap a model, which stays as it is. Raises RequestError if it has no body of its own."""
        bodies = {name: child for name, child in model.named_children() if isinstance(child, PreTrainedModel)}
        if len(bodies) != 1:
            raise _no_head()
        ((name, body),) = bodies.items()
        self.config, self.forward, self.base_model = model.config, model.forward, model.base_model
        self._body = _KeptBody(body)
        self._model = copy.copy(model)
        self._model._modules = {**model._modules, name: self._body}

    def __call__(self, **inputs: Any) -> Any:
        """Run the model, and keep its hidden states. Raises RequestError if its class calls another body."""
        output = self._model(**inputs)
        if self._body.output is None:
            raise _no_head()
        return output

    @property
    def columns(self) -> int:
        """Return the number of columns whose hidden states are kept."""
        return self._body.output[0].shape[1]

    def pieces(self, row: int, start: int, stop: int) -> Iterator[Tensor]:
        """Yield logits [positions, vocabulary] of the columns from `start` to `stop` of one row, in order."""
        size = max(1, MAX_PIECE // self.config.get_text_config().vocab_size)
        for low in range(start, stop, size):
            yield self._body.give(self._model, row, slice(low, min(low + size, stop)))


class KeptStates:
    """Hidden states of a step's prefills, for rows that ask for the logprobs of their prompts."""

    def __init__(self) -> None:
        self._prefills: list[tuple[int, SplitModel]] = []
        """Each with the first column of the cache that it fills."""

    def keep(self, model: Any, column: int) -> SplitModel:
        """Return a model to run the prefill from this column on with."""
        kept = SplitModel(model)
        self._prefills.append((column, kept))
        return kept

    def logits(self, row: int, begin: int, end: int) -> tuple[int, Iterator[Tensor]]:
        """Return the first column from `begin` to `end` that was kept (`end`: none was), and their logits in pieces."""
        first = max(self._prefills[0][0], begin) if self._prefills else end
        return first, self._pieces(row, begin, end)

    def clear(self) -> None:
        """Let go of them."""
        self._prefills.clear()

    def _pieces(self, row: int, begin: int, end: int) -> Iterator[Tensor]:
        for start, model in self._prefills:
            yield from model.pieces(row, max(begin - start, 0), min(end - start, model.columns))


class _KeptBody(nn.Module):
    """The body of a model: runs it and keeps its output, or gives a slice of that."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.output: Any = None
        self._given: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # heads look at some attributes of their bodies
            return getattr(super().__getattr__("body"), name)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        if self._given is not None:
            return self._given
        self.output = self.body(*args, **inputs)
        return self.output

    def give(self, model: Any, row: int, columns: slice) -> Tensor:
        """Return the logits [columns, vocabulary] that `model`, around this body, makes of one row's columns."""
        hidden = self.output[0][row : row + 1, columns]
        self._given = type(self.output)(last_hidden_state=hidden)
        try:
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            return model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._given = None


def _no_head() -> RequestError:
    what = "the head of this model cannot be applied by itself"
    return RequestError(what, "prompt_logprobs", "Leave it out; logprobs of the output are possible")
