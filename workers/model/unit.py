"""A unit: sequences that step together over one padded cache.

Rows are padded on the left, so the newest position of every row is the last column: `pad` alone says which columns of a
row are real. Positions are counted from the first real token, and the 2-D mask is always passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from ...errors import EngineError
from ...ipc.messages import NEUTRAL, GenerationSettings, RequestRow, Sampling
from ..checkpoint.survey import RowFacts
from . import cache_rows as cache_rows
from .growing_cache import new_cache
from .images import RowImages, shown_to
from .processors import TokenHistory
from .step_input import StepInput, StepTokens, with_images


class UnitError(EngineError):
    """A unit was asked for something that its model or its state does not allow; nothing has changed."""


@dataclass(frozen=True)
class RowAbilities:
    """What rows of a model can do without changing a result (see probe.py)."""

    padding: bool = True
    """Rows of different lengths may share a unit."""
    moving: bool = True
    """Rows can be taken out of a cache and joined; if not, they leave by masking, and none joins."""
    reason: str = ""
    """Why something is impossible."""

    @classmethod
    def of(cls, facts: RowFacts) -> RowAbilities:
        """As the survey found them."""
        return cls(facts.padding, facts.moving, facts.reason)

    def may_join(self, length: int, joining: int) -> bool:
        """Whether caches of these lengths can become one."""
        return self.moving and (self.padding or length == joining)


@dataclass
class UnitRow:
    """One sequence in a unit. The cache holds all of `token_ids` but the last, to the right of `pad` columns."""

    number: int
    token_ids: list[int]
    generated: int
    sampling: Sampling
    pad: int = 0
    gone: bool = False
    """It has left a unit whose rows cannot be moved: it still runs, and nobody looks at it."""
    attachment: str = ""
    shift: int = 0
    """Of the positions of its tokens after images (see RowImages)."""
    settings: GenerationSettings = NEUTRAL

    @classmethod
    def of(cls, row: RequestRow, images: RowImages | None, width: int) -> UnitRow:
        """A row of a new unit that is `width` columns wide."""
        pad, shift = width - len(row.token_ids), images.shift if images else 0
        ids = list(row.token_ids)
        about = {"attachment": row.attachment, "shift": shift, "settings": row.settings}
        return cls(row.number, ids, row.generated, row.sampling, pad, **about)


@dataclass
class Unit:
    """Sequences over one cache. A step is: prepare, run, choose tokens, append.

    >>> unit = Unit(model.config)
    >>> step = unit.prepare_prefill(rows)       # once; afterwards unit.prepare_step()
    >>> logits = unit.run(model, step)          # [len(unit.numbers), vocabulary], in the order of unit.numbers
    >>> unit.append(tokens)                     # one for each row, same order

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

    def __post_init__(self) -> None:
        self.cache = self._new_cache()

    @property
    def rows(self) -> list[UnitRow]:
        """The rows that have not left, in the order of the logits."""
        return [row for row in self._rows if not row.gone]

    @property
    def numbers(self) -> list[int]:
        return [row.number for row in self.rows]

    @property
    def samplings(self) -> list[Sampling]:
        return [row.sampling for row in self.rows]

    @property
    def output_indices(self) -> list[int]:
        """Of the token that each row gets next."""
        return [row.generated for row in self.rows]

    @property
    def histories(self) -> list[TokenHistory]:
        """What the next token of each row may depend on."""
        return [TokenHistory(row.settings, row.token_ids, row.generated, self._source_ids(row)) for row in self.rows]

    def _source_ids(self, row: UnitRow) -> list[int]:
        return row.token_ids[: len(row.token_ids) - row.generated]

    @property
    def kv_bytes(self) -> int:
        return cache_rows.cache_bytes(self.cache)

    def prepare_prefill(self, rows: Sequence[RequestRow], images: Sequence[RowImages | None] = ()) -> StepInput:
        """The first step of a new unit: all ids of these rows, and their images, one entry a row if there are any.

        Raises UnitError if they cannot share a unit.
        """
        self._require_prefill(rows)
        width = max(len(row.token_ids) for row in rows)
        images = images or [None] * len(rows)
        self._rows = [UnitRow.of(row, each, width) for row, each in zip(rows, images, strict=True)]
        step = self._input([[0] * row.pad + row.token_ids for row in self._rows], is_prefill=True)
        return with_images(step, images, [row.pad for row in self._rows])

    def prepare_step(self) -> StepInput:
        """The next step: the last token of every row."""
        if self.broken or not self.rows or not self.length:
            raise UnitError("the unit has no cached rows to step", "unit", "Prefill its rows in a new unit")
        return self._input([[row.token_ids[-1]] for row in self._rows], is_prefill=False)

    def run(self, model: Any, step: StepInput) -> Tensor:
        """One forward of a model of `config`: logits [rows, vocabulary] after the newest token of each row."""
        self.broken = True
        output = self._forward(model, step)
        if step.is_prefill:
            cache_rows.compact(self.cache)
        self.length += step.input_ids.shape[1]
        self.broken = False
        return self._logits_of_rows(output.logits[:, -1])

    def whole_rows(self) -> list[RequestRow]:
        """The rows that have not left, as another unit would prefill them."""
        return [
            RequestRow(row.number, row.token_ids, row.generated, row.sampling, row.attachment, row.settings)
            for row in self.rows
        ]

    def append(self, tokens: Sequence[int]) -> None:
        """Record the token that each row chose, in the order of `numbers`."""
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
        """Forget all rows and what is cached of them."""
        self._clear()

    def take(self, numbers: Sequence[int]) -> None:
        """Keep only these rows, in this order (in the present order if rows cannot be moved), and trim the padding."""
        places = self._places(numbers)
        if places == list(range(len(self._rows))):
            return
        if not places:
            self._clear()
        elif self.abilities.moving:
            self._rows = [self._rows[place] for place in places]
            self._trim()  # before the rows move, so that less moves
            cache_rows.take(self.cache, places)
        else:
            for place, row in enumerate(self._rows):
                row.gone = place not in places

    def split(self, numbers: Sequence[int]) -> Unit:
        """Move these rows to a new unit, in this order. Raises UnitError if rows cannot be moved."""
        if not self.abilities.moving:
            raise UnitError("rows of this model cannot move to another unit", "unit", self.abilities.reason)
        places = self._places(numbers)
        rest = [place for place in range(len(self._rows)) if place not in places]
        other = type(self)(self.config, self.abilities, self.device)
        if not rest:
            other.join(self)
            other.take(numbers)
        elif places:
            self._split_rows(other, places, rest)
        return other

    def _split_rows(self, other: Unit, places: list[int], rest: list[int]) -> None:
        other.cache, other.length = cache_rows.split(self.cache, places, rest), self.length
        other._rows = [self._rows[place] for place in places]
        self._rows = [self._rows[place] for place in rest]
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
                _pad_rows(unit._rows, max(self.length, other.length) - unit.length)
        else:
            self.cache = other.cache
        self.length = max(self.length, other.length)
        self._rows += other._rows
        other._clear()

    def _input(self, token_ids: list[list[int]], is_prefill: bool) -> StepInput:
        columns = len(token_ids[0])
        pads = torch.tensor([[row.pad] for row in self._rows])
        places = torch.arange(self.length + columns)
        positions = (places - pads).clamp(min=0)[:, self.length :]
        if not is_prefill:
            positions = positions + torch.tensor([[row.shift] for row in self._rows])
        mask = (places >= pads).long()
        return StepInput(
            torch.tensor(token_ids).to(self.device),
            positions.to(self.device),
            mask.to(self.device),
            self._step_tokens(token_ids),
            is_prefill,
        )

    def _step_tokens(self, token_ids: list[list[int]]) -> StepTokens:
        columns = len(token_ids[0])
        hidden = [columns if row.gone else max(row.pad - self.length, 0) for row in self._rows]
        real = np.arange(columns) >= np.array(hidden)[:, None]
        start = [self.length - row.pad for row in self._rows]
        places = [(place, column) for place, skip in enumerate(hidden) for column in range(skip, columns)]
        return StepTokens.of(
            real,
            self.device,
            [token_ids[place][column] for place, column in places],
            [self._rows[place].number for place, _ in places],
            [start[place] + column for place, column in places],
        )

    def _logits_of_rows(self, logits: Tensor) -> Tensor:
        live = [place for place, row in enumerate(self._rows) if not row.gone]
        return logits if len(live) == len(self._rows) else logits[live]

    def _places(self, numbers: Sequence[int]) -> list[int]:
        places = {row.number: place for place, row in enumerate(self._rows) if not row.gone}
        missing = [number for number in numbers if number not in places]
        if self.broken or missing or len(set(numbers)) != len(numbers):
            raise UnitError(f"rows {list(numbers)} are not rows of this unit ({self.numbers})", "unit")
        return [places[number] for number in numbers]

    def _trim(self) -> None:
        """Drop the columns that are padding in every row."""
        if not self._rows:
            return self._clear()
        columns = min(row.pad for row in self._rows)
        self._trim_cache(columns)
        self.length -= columns
        return _pad_rows(self._rows, -columns)

    def _trim_cache(self, columns: int) -> None:
        if columns:
            cache_rows.trim(self.cache, columns)

    def _clear(self) -> None:
        self.cache, self._rows, self.length = self._new_cache(), [], 0

    def _new_cache(self) -> DynamicCache:
        return new_cache(self.config)

    def _forward(self, model: Any, step: StepInput) -> Any:
        with shown_to(model, step.images) as images:
            return model(
                input_ids=step.input_ids,
                position_ids=step.position_ids,
                attention_mask=step.attention_mask,
                past_key_values=self.cache,
                use_cache=True,
                **images,
                **_newest_logits_only(model),
            )

    def _require_prefill(self, rows: Sequence[RequestRow]) -> None:
        if self._rows or self.length or not rows or not all(row.token_ids for row in rows):
            raise UnitError("only an empty unit is prefilled, with rows that have tokens", "unit")
        if not self.abilities.padding and len({len(row.token_ids) for row in rows}) > 1:
            raise UnitError("rows of this model share a unit only at equal lengths", "unit", self.abilities.reason)

    def _require_join(self, other: Unit) -> None:
        if self.broken or other.broken:
            raise UnitError("a broken unit cannot join", "unit", "Prefill its rows in a new unit")
        if set(self.numbers) & set(other.numbers):
            raise UnitError(f"rows {other.numbers} are already among {self.numbers}", "unit")
        if self._rows and not self.abilities.may_join(self.length, other.length):
            raise UnitError("rows of this model cannot join a running unit", "unit", self.abilities.reason)


def _pad_rows(rows: list[UnitRow], columns: int) -> None:
    for row in rows:
        row.pad += columns


def _newest_logits_only(model: Any) -> dict[str, int]:
    """Without it, a prefill makes logits [rows, columns, vocabulary] that nobody reads."""
    has_option = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if has_option else {}
