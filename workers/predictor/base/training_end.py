"""The end of a training as plain data, which can be shown without importing torch."""

from __future__ import annotations

from typing import Literal

import msgspec

EndReason = Literal["epochs", "time", "no gain"]


class TrainingEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Reason why a training ended, and how far it had come."""

    reason: EndReason
    """epochs: all were run; time: the time limit was reached; no gain: the development loss fell no further."""
    epochs: float
    """Passes over all sequences, the last one perhaps a part."""
    steps: int

    def words(self, epochs: float, minutes: float) -> str:
        """Return a phrase for a person who had set these limits."""
        reasons = {
            "epochs": "all that were asked for",
            "time": f"ended by the clock (--minutes {minutes:g})",
            "no gain": "ended since nothing more was gained",
        }
        return f"{self.epochs:.1f} of at most {epochs:g} epochs; {reasons[self.reason]}"
