"""Which of its two stacks a module of an encoder-decoder belongs to."""

from __future__ import annotations

ENCODER, DECODER = "encoder", "decoder"


def stack_of(path: str) -> str:
    """ENCODER or DECODER, as the first such part of the module's path says; empty for other models."""
    return next((part for part in path.split(".") if part in (ENCODER, DECODER)), "")
