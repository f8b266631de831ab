"""The choice between packed and dequantised experts, as a survey is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from .packing import FLOAT8, Packing

ExpertsIn = Literal["auto", "packed", "dequantised"]


class PackingChoice(msgspec.Struct, frozen=True):
    """Form of quantised experts in slots.

    `auto` packs what the kernels multiply without unpacking it first: all formats but float8, in bfloat16. No budget
    has a say: packed and dequantised experts may have kernels of their own, and results are the same bits at every
    budget (I1a).
    """

    experts_in: ExpertsIn = "auto"

    def packs(self, packings: Sequence[Packing], dtype: str) -> bool:
        """Return whether experts that can be packed in this way are packed, computed with in `dtype`."""
        is_fast = dtype == "bfloat16" and all(packing.format != FLOAT8 for packing in packings)
        return self.experts_in == "packed" or (self.experts_in == "auto" and bool(packings) and is_fast)


DEQUANTISED = PackingChoice("dequantised")
