"""`expertflow quantize`: makes the experts of a model small."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from ...configs.sizes import format_size
from ...errors import UsageError
from ...ipc.messages import Progress
from ..command_line.base import DONE, Command
from ..monitor.progress import ProgressView
from ..monitor.tables import result_console
from ..text.codec import TextCodec

LEAST_TOKENS = 2
"""Tokens of the shortest text that can be compared: one is read, the next is expected."""


@dataclass(frozen=True, kw_only=True)
class Quantize(Command):
    """Write a copy of a model whose experts are stored in 4 or 8 bits; all other weights stay as they are.

    One matrix is in memory at a time. A run that was broken off goes on where it ended. The copy opens in
    transformers, and here.
    """

    source: tyro.conf.Positional[Path]
    """Model folder in bfloat16, float16 or float32, with separate matrices for each expert."""
    destination: tyro.conf.Positional[Path]
    """Folder to write; it must not exist."""
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    group: Literal["32", "64", "128", "channel"] = "32"
    """Weights of a row that share a scale (16 bits, or as the model's type); channel: the whole row."""
    format: Literal["compressed-tensors"] = "compressed-tensors"
    """Form of the copy."""
    text: Path | None = None
    """Text on which the copy is compared with the source: perplexity, divergence, changed routes."""
    tokens: Annotated[int, Meta(ge=LEAST_TOKENS)] = 2048
    """Tokens of the text that are read, from its beginning."""

    def run(self) -> int:
        console = result_console()
        ids = self._token_ids() if self.text is not None else None
        with ProgressView() as view:
            view(Progress("quantize", "starting", 0, 1))
            errors = self._quantise(view)
        sizes = f"{_size(self.destination)} instead of {_size(self.source)}"
        console.print(f"{self.destination}: {sizes}", soft_wrap=True)
        console.print("error of the experts' weights, by layer: " + _listed(errors), soft_wrap=True)
        if ids is not None:
            self._compare(ids)
        return DONE

    def _quantise(self, view: ProgressView) -> dict[int, float]:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from ...workers.quantize.plan import CHANNEL, Precision
        from ...workers.quantize.writing import quantise_checkpoint

        view(Progress("quantize", "starting", 1, 1))
        precision = Precision(self.bits, CHANNEL if self.group == "channel" else int(self.group))
        return quantise_checkpoint(
            self.source, self.destination, precision, lambda *state: view(Progress("quantize", *state))
        )

    def _token_ids(self) -> list[int]:
        """Return the ids of the text, before hours are spent on a model whose text cannot be read."""
        if self.text is None or not self.text.is_file():
            raise UsageError("there is no such file", str(self.text), "Name a text file")
        codec = TextCodec(str(self.source))
        try:
            ids = codec.encode(self.text.read_text(errors="replace"))[: self.tokens]
        finally:
            codec.close()
        if len(ids) < LEAST_TOKENS:
            what = f"is too short to compare models with: {len(ids)} tokens"
            raise UsageError(what, str(self.text), f"Name a text of {LEAST_TOKENS} tokens or more")
        return ids

    def _compare(self, ids: list[int]) -> None:
        from ..quality.comparison import compare_models

        with ProgressView() as view:
            view(Progress("quantize", "comparing", 0, 1))
            found = compare_models(
                self.source, self.destination, ids, lambda *state: view(Progress("quantize", *state))
            )
        console = result_console()
        console.print(f"{self.text}, {found.tokens} tokens:")
        console.print(f"  perplexity {found.perplexity:.4g} instead of {found.original_perplexity:.4g}")
        console.print(f"  mean KL divergence {found.mean_kl:.4g} nats; {found.same_top_token:.1%} the same top token")
        console.print(f"  {found.changed_routes:.1%} of the routes changed")


def _size(folder: Path) -> str:
    return format_size(sum(file.stat().st_size for file in folder.glob("*.safetensors")))


def _listed(errors: dict[int, float]) -> str:
    return ", ".join(f"{layer}: {error:.2%}" for layer, error in errors.items())
