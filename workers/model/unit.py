"""A unit: sequences that step together over one padded cache.

Rows are padded on the left, so the newest position of every row is the last column: `pad` alone says which columns of a
row are real. Positions are counted from the first real token, and the 2-D mask is always passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from ...ipc.messages import RequestRow, Sampling
from . import cache_rows as cache_rows
from .cache_blocks import RowPrefix, assemble, cut, shared_columns
from .growing_cache import new_cache
from .images import RowImages, image_inputs
from .processors import TokenHistory
from .prompt_logits import KeptStates
from .step_input import StepInput, build_step_input, newest_logits_only, with_images
from .unit_rows import RowAbilities, UnitError, UnitRow, pad_rows


@dataclass
class Unit:
    """Sequences over one cache. A step is: prepare, run, choose tokens, append.

    >>> unit = Unit(model.config)
    >>> step = unit.prepare_prefill(rows)       # once; afterwards unit.prepare_step()
    >>> logits = unit.run(model, step)          # [len(unit.numbers), vocabulary], in the order of unit.numbers
    >>> unit.append(tokens)                     # one for each row, same order; not while unit.filling

    Everything runs under `torch.inference_mode()`, which is the caller's. If `run` raises, the cache may hold half a
    step: the unit is `broken`, and only its rows are of use, to be prefilled in another.
    """

    config: PreTrainedConfig
    abilities: RowAbilities = RowAbilities()
    device: torch.device | str = "cpu"
    length: int = 0
    """Columns of the cache, padding included."""
    broken: bool = False
    _rows: list[UnitRow] = field(default_factory=list)
    _kept: KeptStates = field(default_factory=KeptStates)
    _filling: bool = False

    def __post_init__(self) -> None:
        self.cache: Cache = self._new_cache()

    @property
    def filling(self) -> bool:
        """Tell whether the next step runs another chunk of a prefill; no token follows the last step."""
        return self._filling

    @property
    def rows(self) -> list[UnitRow]:
        """Return the rows that have not left, in the order of the logits."""
        return [row for row in self._rows if not row.gone]

    @property
    def numbers(self) -> list[int]:
        return [row.number for row in self.rows]

    @property
    def samplings(self) -> list[Sampling]:
        return [row.sampling for row in self.rows]

    @property
    def output_indices(self) -> list[int]:
        """Return for each row the index of its next token in its output."""
        return [row.generated for row in self.rows]

    @property
    def histories(self) -> list[TokenHistory]:
        """Return for each row the tokens on which its next token may depend."""
        return [row.history(self._source_ids(row)) for row in self.rows]

    def _source_ids(self, row: UnitRow) -> list[int]:
        return row.prompt_ids

    @property
    def kv_bytes(self) -> int:
        return cache_rows.cache_bytes(self.cache)

    def prepare_prefill(
        self,
        rows: Sequence[RequestRow],
        images: Sequence[RowImages | None] = (),
        prefixes: Sequence[RowPrefix] = (),
    ) -> StepInput:
        """Return the first step of a new unit: all ids of these rows, or the first chunk of a single one, and images.

        `images` and `prefixes` have one entry a row, or are empty. A prefix is not computed again, but for positions
        that other rows of the unit need columns for. Raises UnitError if the rows cannot share a unit.
        """
        self._require_prefill(rows)
        width = max(len(row.token_ids) for row in rows)
        images = images or [None] * len(rows)
        self._rows = [UnitRow.of(row, shown, width) for row, shown in zip(rows, images, strict=True)]
        if any(prefix.count for prefix in prefixes):
            self.length = shared_columns(prefixes, [len(row.token_ids) for row in rows])
            self.cache = assemble(prefixes, self.length, [row.pad for row in self._rows]) if self.length else self.cache
        step = self._input(self._next_columns(), is_prefill=True)
        return with_images(step, images, [row.pad for row in self._rows])

    def prepare_step(self) -> StepInput:
        """Return the next step: the last token of every row, or the next chunk of a prefill.

        Raises UnitError if there is nothing cached to step.
        """
        if self.broken or not self.rows or not self.length:
            raise UnitError("the unit has no cached rows to step", "unit", "Prefill its rows in a new unit")
        if self._filling:
            return self._input(self._next_columns(), is_prefill=True)
        return self._input([[row.token_ids[-1]] for row in self._rows], is_prefill=False)

    def run(self, model: Any, step: StepInput) -> Tensor:
        """Run one forward of a model of `config`; return logits [rows, vocabulary] after each row's newest token.

        While `filling` they are of no use.
        """
        self.broken = True
        output = self._forward(self._keep_states(model, step), step)
        if step.is_prefill:
            cache_rows.compact(self.cache)
        self.length += step.input_ids.shape[1]
        self._filling = any(row.pad + len(row.token_ids) > self.length for row in self._rows)
        self.broken = False
        return self._logits_of_rows(output.logits[:, -1])

    def prompt_logits(self, number: int) -> tuple[int, Iterator[Tensor]]:
        """Return what the last step says of a prompt's tokens: the index of the first of them, and logits in pieces.

        The pieces are [tokens, vocabulary], one row a token, and none if the step ran no position of the prompt. Only
        for rows that ask for `prompt_logprobs`, and until `release_prompts`.
        """
        (index,) = self._indices([number])
        row = self._rows[index]
        first, pieces = self._kept.logits(index, row.pad, row.pad + len(row.prompt_ids) - 1)
        return first - row.pad + 1, pieces

    def release_prompts(self) -> None:
        """Let go of the hidden states of prompts."""
        self._kept.clear()

    def _keep_states(self, model: Any, step: StepInput) -> Any:
        """Return the model to run for a step: one that keeps its hidden states if a row asks for prompt logprobs."""
        if not step.is_prefill or not any(row.details.prompt_logprobs is not None for row in self._rows):
            return model
        return self._kept.keep(model, self.length)

    def whole_rows(self) -> list[RequestRow]:
        """Return the rows that have not left, as another unit would prefill them."""
        return [row.to_request() for row in self.rows]

    def append(self, tokens: Sequence[int]) -> None:
        """Record the token chosen for each row, in the order of `numbers`. Raises UnitError for another count."""
        chosen = iter(tokens)
        if len(tokens) != len(self.rows):
            raise UnitError(f"{len(tokens)} tokens for {len(self.rows)} rows", "unit")
        for row in self._rows:
            row.token_ids.append(0 if row.gone else next(chosen))
            row.generated += 1

    def drop(self, numbers: Collection[int]) -> None:
        """Let rows leave; the others keep their order."""
        self.take([number for number in self.numbers if number not in numbers])

    def clear(self) -> None:
        """Drop all rows and their cache."""
        self._clear()

    def take(self, numbers: Sequence[int]) -> None:
        """Keep only these rows, in this order (in the present order if rows cannot be moved), and trim the padding."""
        indices = self._indices(numbers)
        if indices == list(range(len(self._rows))):
            return
        if not indices:
            self._clear()
        elif self.abilities.moving:
            self._rows = [self._rows[index] for index in indices]
            self._trim()  # before the rows move, so that less moves
            cache_rows.take(self.cache, indices)
        else:
            for index, row in enumerate(self._rows):
                row.gone = index not in indices

    def split(self, numbers: Sequence[int]) -> Unit:
        """Move these rows to a new unit, in this order. Raises UnitError if rows cannot be moved."""
        if not self.abilities.moving:
            raise UnitError("rows of this model cannot move to another unit", "unit", self.abilities.reason)
        indices = self._indices(numbers)
        rest = [index for index in range(len(self._rows)) if index not in indices]
        other = type(self)(self.config, self.abilities, self.device)
        if not rest:
            other.join(self)
            other.take(numbers)
        elif indices:
            self._split_rows(other, indices, rest)
        return other

    def _split_rows(self, other: Unit, indices: list[int], rest: list[int]) -> None:
        other.cache, other.length = cache_rows.split(self.cache, indices, rest), self.length
        other._rows = [self._rows[index] for index in indices]
        self._rows = [self._rows[index] for index in rest]
        other._trim()
        self._trim()

    def join(self, other: Unit) -> None:
        """Append the rows of `other`, which is empty afterwards. Raises UnitError if this model's rows cannot join."""
        if not other.rows:
            return
        self._require_join(other)
        if self._rows:
            cache_rows.join(self.cache, other.cache)
            for unit in (self, other):
                pad_rows(unit._rows, max(self.length, other.length) - unit.length)
        else:
            self.cache = other.cache
        self.length = max(self.length, other.length)
        self._rows += other._rows
        other._clear()

    def cut(self, number: int, begin: int, end: int) -> Cache:
        """Return a copy of a row's cache from position `begin` up to `end`. Raises UnitError if it has no such row."""
        (index,) = self._indices([number])
        pad = self._rows[index].pad
        return cut(self.cache, index, pad + begin, pad + end)

    def _next_columns(self) -> list[list[int]]:
        """Return the ids that are not cached, pads before them: int [rows, columns], one chunk of a single row."""
        chunk = self._rows[0].chunk if len(self._rows) == 1 else 0
        end = self.length + chunk if chunk else None
        return [([0] * row.pad + row.token_ids)[self.length : end] for row in self._rows]

    def _input(self, token_ids: list[list[int]], is_prefill: bool) -> StepInput:
        return build_step_input(self._rows, token_ids, self.length, is_prefill, self.device)

    def _logits_of_rows(self, logits: Tensor) -> Tensor:
        live = [index for index, row in enumerate(self._rows) if not row.gone]
        return logits if len(live) == len(self._rows) else logits[live]

    def _indices(self, numbers: Sequence[int]) -> list[int]:
        indices = {row.number: index for index, row in enumerate(self._rows) if not row.gone}
        missing = [number for number in numbers if number not in indices]
        if self.broken or missing or len(set(numbers)) != len(numbers):
            raise UnitError(f"rows {list(numbers)} are not rows of this unit ({self.numbers})", "unit")
        return [indices[number] for number in numbers]

    def _trim(self) -> None:
        """Drop the columns that are padding in every row."""
        if not self._rows:
            return self._clear()
        columns = min(row.pad for row in self._rows)
        self._trim_cache(columns)
        self.length -= columns
        return pad_rows(self._rows, -columns)

    def _trim_cache(self, columns: int) -> None:
        if columns:
            cache_rows.trim(self.cache, columns)

    def _clear(self) -> None:
        self.cache, self._rows, self.length, self._filling = self._new_cache(), [], 0, False

    def _new_cache(self) -> DynamicCache:
        return new_cache(self.config)

    def _forward(self, model: Any, step: StepInput) -> Any:
        with image_inputs(model, step.images) as images:
            return model(
                input_ids=step.input_ids,
                position_ids=step.position_ids,
                attention_mask=step.attention_mask,
                past_key_values=self.cache,
                use_cache=True,
                **images,
                **newest_logits_only(model),
            )

    def _require_prefill(self, rows: Sequence[RequestRow]) -> None:
        if self._rows or self.length or not rows or not all(row.token_ids for row in rows):
            raise UnitError("only an empty unit is prefilled, with rows that have tokens", "unit")
        if not self.abilities.padding and len({len(row.token_ids) for row in rows}) > 1:
            raise UnitError("rows of this model share a unit only at equal lengths", "unit", self.abilities.reason)

    def _require_join(self, other: Unit) -> None:
        if self.broken or other.broken or self.filling or other.filling:
            raise UnitError("a broken or unfinished unit cannot join", "unit", "Prefill its rows in a new unit")
        if set(self.numbers) & set(other.numbers):
            raise UnitError(f"rows {other.numbers} are already among {self.numbers}", "unit")
        if self._rows and not self.abilities.may_join(self.length, other.length):
            raise UnitError("rows of this model cannot join a running unit", "unit", self.abilities.reason)
