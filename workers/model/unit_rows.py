"""Rows of a unit: the ids of one sequence each and the padding before them, and what can be done with rows."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import EngineError
from ...ipc.messages import NEUTRAL, NO_DETAILS, Details, GenerationSettings, RequestRow, Sampling
from ..checkpoint.survey import RowFacts
from .images import RowImages
from .processors import TokenHistory


class UnitError(EngineError):
    """Request that a unit's model or state does not allow; nothing has changed."""


@dataclass(frozen=True)
class RowAbilities:
    """Row operations that change no result of a model (see probe.py)."""

    padding: bool = True
    """Rows of different lengths may share a unit."""
    moving: bool = True
    """Rows can be taken out of a cache and joined; if not, they leave by masking, and none joins."""
    reason: str = ""
    """The reason if something is impossible."""
    extending: bool = True
    """A cache can be extended by many tokens at once: a prompt can be prefilled in chunks."""
    copying: bool = True
    """The beginning of a row can be copied to another: a prefix that rows share is computed once."""

    @classmethod
    def of(cls, facts: RowFacts) -> RowAbilities:
        """Return the abilities that the survey found."""
        return cls(facts.padding, facts.moving, facts.reason, facts.extending, facts.copying)

    def may_join(self, length: int, joining: int) -> bool:
        """Return whether caches of these lengths can become one."""
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
    """True once the row has left a unit whose rows cannot be moved: it still runs, and its logits are dropped."""
    attachment: str = ""
    shift: int = 0
    """Added to the positions of tokens after images (see RowImages)."""
    settings: GenerationSettings = NEUTRAL
    details: Details = NO_DETAILS
    chunk: int = 0
    """Most positions that one step prefills, in a unit of this row alone; 0: all."""

    @classmethod
    def of(cls, row: RequestRow, images: RowImages | None, width: int) -> UnitRow:
        """Return a row of a new unit that is `width` columns wide."""
        return cls(
            row.number,
            list(row.token_ids),
            row.generated,
            row.sampling,
            pad=width - len(row.token_ids),
            attachment=row.attachment,
            shift=images.shift if images else 0,
            settings=row.settings,
            details=row.details,
            chunk=row.chunk,
        )

    @property
    def prompt_ids(self) -> list[int]:
        """Return the ids that were not generated."""
        return self.token_ids[: len(self.token_ids) - self.generated]

    def history(self, source_ids: list[int]) -> TokenHistory:
        """Return the tokens on which the next one may depend; `source_ids` is the prompt."""
        return TokenHistory(self.settings, self.token_ids, self.generated, source_ids)

    def to_request(self) -> RequestRow:
        """Return the row as another unit would prefill it."""
        return RequestRow(
            self.number,
            self.token_ids,
            self.generated,
            self.sampling,
            self.attachment,
            self.settings,
            self.details,
            chunk=self.chunk,
        )


def pad_rows(rows: list[UnitRow], columns: int) -> None:
    """Add `columns` columns of padding to every row; a negative number takes them away."""
    for row in rows:
        row.pad += columns
