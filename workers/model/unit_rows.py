"""Rows of a unit: the token ids of one sequence each, and how much padding stands before them in the cache."""

from __future__ import annotations

from dataclasses import dataclass

from ...ipc.messages import NEUTRAL, NO_DETAILS, Details, GenerationSettings, RequestRow, Sampling
from .images import RowImages
from .processors import TokenHistory


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
        )


def pad_rows(rows: list[UnitRow], columns: int) -> None:
    """Add `columns` columns of padding to every row; a negative number takes them away."""
    for row in rows:
        row.pad += columns
