"""Types of the tensors in a GGUF file, by ggml's numbers and names."""

from __future__ import annotations

import msgspec


class BlockType(msgspec.Struct, frozen=True):
    """One type: rows are stored in blocks of `values`, `size_bytes` each."""

    name: str
    values: int
    size_bytes: int

    def count_bytes(self, values: int) -> int:
        """Return the bytes of whole blocks with so many values."""
        return values // self.values * self.size_bytes


PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Types of single values, and their names here."""
TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    28: BlockType("F64", 1, 8),
    30: BlockType("BF16", 1, 2),
    39: BlockType("MXFP4", 32, 17),
}
"""Types that are read, by the number that files store."""
OTHERS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    40: "NVFP4",
}  # fmt: skip
"""Names of types that are refused."""
BLOCK_TYPES = {own.name: own for own in TYPES.values() if own.name not in PLAIN}
"""Quantised types by name."""
