"""Results of verification as plain data: the process that shows them need not import torch."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A claim and whether it holds; `detail` has the figures or the first difference."""

    claim: str
    holds: bool
    detail: str


RESIDENT = "bit-identical to the same batches with everything resident"
ALONE = "batch-invariant rows bit-identical to each of them alone"
CHOSEN = "tokens as transformers' own processors choose them, by the model's generation settings"
FLOAT32 = "tokens equal to transformers in float32"
BFLOAT16 = "error against float32 at most 1.25 times that of transformers"
