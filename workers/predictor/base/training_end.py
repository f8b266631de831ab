"""How a training ended, as plain data: whoever shows it need not import torch."""

from __future__ import annotations

from typing import Literal

import msgspec

EndReason = Literal["epochs", "time", "no gain"]


class TrainingEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Why a training ended, and how far it had come."""

    reason: EndReason
    """epochs: as many as were asked for; time: the clock; no gain: it became no better on the development sequences."""
    epochs: float
    """Times that every sequence was learned from; the last one may be a part."""
    steps: int

    def words(self, epochs: float, minutes: float) -> str:
        """Say it to a person who had asked for at most so many epochs and minutes."""
        reasons = {
            "epochs": "all that were asked for",
            "time": f"ended by the clock (--minutes {minutes:g})",
            "no gain": "ended since nothing more was gained",
        }
        return f"{self.epochs:.1f} of at most {epochs:g} epochs; {reasons[self.reason]}"
