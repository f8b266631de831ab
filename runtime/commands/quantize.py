"""`expertflow quantize`: makes the experts of a model small."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro
from msgspec import Meta

from ...configs.sizes import format_size, parse_size
from ...errors import UsageError
from ...ipc.messages import Progress
from ..command_line.base import DONE, Command
from ..monitor.progress import ProgressView
from ..monitor.tables import result_console
from ..quality.copies import ComparedCopy, comparison_words, copies_table, line_words, size_of
from ..text.codec import TextCodec

if TYPE_CHECKING:
    from ...workers.checkpoint.shards import ReportProgress
    from ...workers.quantize.mixing import Mixture

LEAST_TOKENS = 2
"""Tokens of the shortest text that can be compared: one is read, the next is expected."""
DEFAULT_SHARE = "25%"


@dataclass(frozen=True, kw_only=True)
class Quantize(Command):
    """Write a copy of a model whose experts are stored in 4 or 8 bits; all other weights stay as they are.

    One expert is in memory at a time. A run that was broken off goes on where it ended. The copy opens in
    transformers, and here.
    """

    option_groups: ClassVar = {
        "Mixed": ("mixed", "mixed_share"),
        "Comparison": ("text", "tokens", "beside"),
    }

    source: tyro.conf.Positional[Path]
    """Model folder in bfloat16, float16 or float32, with separate matrices for each expert."""
    destination: tyro.conf.Positional[Path]
    """Folder to write; it must not exist."""
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    mixed: Annotated[Path | None, tyro.conf.arg(metavar="TRACE")] = None
    """Recorded routing of SOURCE (`expertflow trace`): experts of the layers in which 4 bits would cost most get 8."""
    mixed_share: str = DEFAULT_SHARE
    """Share of the MoE layers that may get 8 bits with --mixed, rounded down to whole layers."""
    group: Literal["32", "64", "128", "channel"] = "32"
    """Weights of a row that share a scale (16 bits, or as the model's type); channel: the whole row."""
    format: Literal["compressed-tensors"] = "compressed-tensors"
    """Form of the copy."""
    text: Path | None = None
    """Text on which the copy is compared with the source: perplexity, divergence, changed routes."""
    tokens: Annotated[int, Meta(ge=LEAST_TOKENS)] = 2048
    """Tokens of the text that are read, from its beginning."""
    beside: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDERS")] = ()
    """Other copies of SOURCE to compare on the same text: what they would cost, beside their sizes."""

    def run(self) -> int:
        share = self._checked_share()
        console = result_console()
        ids = self._token_ids() if self.text is not None else None
        with ProgressView() as view:
            view(Progress("quantize", "starting", 0, 1))
            errors = self._quantise(view) if self.mixed is None else self._mix(self.mixed, share, view)
        sizes = f"{format_size(size_of(self.destination))} instead of {format_size(size_of(self.source))}"
        console.print(f"{self.destination}: {sizes}", soft_wrap=True)
        console.print("error of the experts' weights, by layer: " + _listed(errors), soft_wrap=True)
        if ids is not None:
            self._compare(ids)
        return DONE

    def _checked_share(self) -> float:
        """Return the share of layers. Raises UsageError for options that do not go together."""
        share = parse_size(self.mixed_share, "mixed_share").share
        if share is None:
            raise UsageError("must be a percentage of the layers", "mixed_share", "Give 25%, for example")
        if self.mixed is None and self.mixed_share != DEFAULT_SHARE:
            raise UsageError("is for --mixed, and no trace is given", "mixed_share", "Give --mixed TRACE as well")
        if self.mixed is not None and self.bits != 4:
            what = "cannot be mixed: --mixed gives some layers 8 bits, and the others 4"
            raise UsageError(what, "--bits 8", "Leave one of them out")
        if self.beside and self.text is None:
            raise UsageError("needs a text to compare copies on", "beside", "Give --text FILE as well")
        for copy in self.beside:
            if not (copy / "config.json").is_file():
                raise UsageError("is no model folder", str(copy), "Name copies that were written before")
        return share

    def _quantise(self, view: ProgressView) -> dict[int, float]:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from ...workers.quantize.plan import Precision
        from ...workers.quantize.writing import quantise_checkpoint

        view(Progress("quantize", "starting", 1, 1))
        return quantise_checkpoint(self.source, self.destination, Precision(self.bits, self._group()), _reporter(view))

    def _mix(self, trace: Path, share: float, view: ProgressView) -> dict[int, float]:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from ...workers.checkpoint.shards import check_destination
        from ...workers.quantize.writing import quantise_mixed

        check_destination(self.source, self.destination, 0)
        view(Progress("quantize", "starting", 1, 1))
        mixture = self._mixture(trace, share, view)
        copy = quantise_mixed(self.source, self.destination, self._group(), mixture, _reporter(view))
        costs = ", ".join(f"{layer}: {cost:.2g}" for layer, cost in copy.costs.items())
        console = result_console()
        console.print(f"estimated cost of 4 bits, by layer: {costs}", soft_wrap=True)
        console.print(f"in 8 bits: layers {', '.join(map(str, copy.wide))} of {len(copy.costs)}", soft_wrap=True)
        return copy.errors

    def _mixture(self, path: Path, share: float, view: ProgressView) -> Mixture:
        """Read the trace, and measure the model on its tokens. Raises UsageError if the trace does not fit."""
        from ...workers.quantize.importance import Importance, count_loads, decoder_layers, read_routing_of
        from ...workers.quantize.mixing import NARROW_BITS, Mixture
        from ...workers.quantize.plan import Precision, QuantisePlan
        from ...workers.surveyor.surveyor import survey_folder
        from ..quality.contributions import measure_contributions

        QuantisePlan(self.source, Precision(NARROW_BITS, self._group()))  # refuses before anything is measured
        survey = survey_folder(self.source)
        layers = decoder_layers(survey)
        trace = read_routing_of(survey, path)
        loads = count_loads(trace, path)
        Mixture.count(share, len(layers))
        contributions = measure_contributions(survey, list(layers), trace, _reporter(view))
        return Mixture(Importance(list(layers.values()), loads, contributions), share)

    def _group(self) -> int:
        from ...workers.quantize.plan import CHANNEL

        return CHANNEL if self.group == "channel" else int(self.group)

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
        copies = [self._compared(copy, ids) for copy in (self.destination, *self.beside)]
        console = result_console()
        console.print(f"{self.text}, {copies[0].comparison.tokens} tokens:")
        if not self.beside:
            console.print(comparison_words(copies[0].comparison))
            return
        console.print(copies_table(copies))
        if words := line_words(copies):
            console.print(words, soft_wrap=True)

    def _compared(self, copy: Path, ids: list[int]) -> ComparedCopy:
        from ..quality.comparison import compare_models

        with ProgressView() as view:
            view(Progress("quantize", f"comparing {copy.name}", 0, 1))
            found = compare_models(self.source, copy, ids, _reporter(view))
        return ComparedCopy(copy.name, size_of(copy), found)


def _reporter(view: ProgressView) -> ReportProgress:
    return lambda what, done, total: view(Progress("quantize", what, done, total))


def _listed(errors: dict[int, float]) -> str:
    return ", ".join(f"{layer}: {error:.2%}" for layer, error in errors.items())
