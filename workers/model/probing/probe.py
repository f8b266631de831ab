"""Tries on a tiny random copy of a model which row operations change no result.

Padding, moving, prefill in chunks, and copies of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ....errors import CheckpointError
from ....ipc.messages import RequestRow, Sampling
from ..architecture import build_on_meta, model_class
from ..cache_blocks import RowPrefix, may_cut
from ..cache_rows import UnknownCacheLayer, require_known
from ..configuration import first_line
from ..encoder_decoder import logits_alone, new_unit
from ..families.registry import correct_blocks, correct_positions
from ..unit import RowAbilities, Unit
from .tiny_copy import shrink
from .tiny_sizes import VOCABULARY

TOLERANCE = 1e-3
"""Largest allowed error as a share of the largest logit, float32. A leak of padding or of a neighbour's state is a
hundred times that."""

SEEDS = (0, 1)
"""Rounding may turn a close choice of experts; it does not do that with two seeds."""

MAX_PARAMETERS = 4_000_000
EQUAL, UNEQUAL = (9, 9, 9), (3, 19, 12)
"""Prompt lengths: shorter than a convolution, longer than the window, and different."""
CHUNK = 7
"""Positions of a chunk: a prompt of 19 takes three steps."""


def probe(config: PreTrainedConfig) -> RowAbilities:
    """Return the abilities of this model's rows (a second or less; the global random state stays).

    A model that cannot be built or tried gets none, and `reason` says so.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return probe_models([_tiny_model(config, seed) for seed in SEEDS])
    except Exception as error:  # noqa: BLE001 - any model code may run here; what fails to run tiny must run conservatively
        reason = f"a small copy cannot be tried ({type(error).__name__}: {first_line(error)})"
        return RowAbilities(False, False, reason, extending=False, copying=False)
    finally:
        torch.set_num_threads(threads)


def probe_models(models: Sequence[Any]) -> RowAbilities:
    """Return the abilities of existing models, which must be of one configuration; one of them has to pass."""
    reason = _unknown_layer(models[0])
    moving = not reason and any(_is_exact(model, EQUAL, RowAbilities()) for model in models)
    padding = any(_is_exact(model, UNEQUAL, RowAbilities(moving=moving)) for model in models)
    if not moving and not reason:
        reason = "moving rows changed the logits of a small copy"
    if not padding:
        reason = "; ".join(filter(None, [reason, "padding changed the logits of a small copy"]))
    abilities = RowAbilities(padding, moving, reason)
    extending = any(_extends(model, abilities) for model in models)
    copying = extending and moving and any(_copies(model, abilities) for model in models)
    return RowAbilities(padding, moving, reason, extending, copying)


@dataclass
class _Trial:
    """Decodes fixed tokens and keeps the logits before each of them."""

    model: Any
    texts: list[list[int]]
    lengths: tuple[int, ...]
    abilities: RowAbilities
    chunk: int = 0
    seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def prefill(self, numbers: Sequence[int], prefixes: Sequence[RowPrefix] = ()) -> Unit:
        unit = new_unit(self.model.config, self.abilities)
        texts = {number: self.texts[number][: self.lengths[number]] for number in numbers}
        rows = [RequestRow(number, text, 0, Sampling(), chunk=self.chunk) for number, text in texts.items()]
        logits = unit.run(self.model, unit.prepare_prefill(rows, prefixes=prefixes))
        while unit.filling:
            logits = unit.run(self.model, unit.prepare_step())
        self._record(unit, logits)
        return unit

    def step(self, unit: Unit) -> None:
        self._record(unit, unit.run(self.model, unit.prepare_step()))

    def _record(self, unit: Unit, logits: Tensor) -> None:
        for row, own in zip(unit.rows, logits, strict=True):
            self.seen[row.number, row.generated] = own
        unit.append([self.texts[row.number][self.lengths[row.number] + row.generated] for row in unit.rows])

    def worst_error(self) -> float:
        """Return the largest difference to each row run alone and unpadded, as a share of its largest logit."""
        errors = [0.0]
        for number, text in enumerate(self.texts):
            alone = logits_alone(self.model, text[: self.lengths[number]], text[self.lengths[number] :])
            seen = [(index, logits) for (row, index), logits in self.seen.items() if row == number]
            errors += [float((alone[index] - logits).abs().max() / alone.abs().max()) for index, logits in seen]
        return max(errors, key=lambda error: (error != error, error))


@torch.inference_mode()
def _is_exact(model: Any, lengths: tuple[int, ...], abilities: RowAbilities) -> bool:
    """Compare rows that are padded, joined and taken (as far as they can be) with each row alone."""
    trial = _Trial(model, _random_texts(lengths), lengths, abilities)
    try:
        _run_trial(trial)
    except UnknownCacheLayer:  # the states of shorter and longer rows do not fit together
        return False
    return trial.worst_error() <= TOLERANCE


@torch.inference_mode()
def _extends(model: Any, abilities: RowAbilities) -> bool:
    """Compare rows that are prefilled in chunks, alone, with each row in one prefill."""
    if model.config.is_encoder_decoder:
        return False  # its prompt goes through the encoder, which sees it whole
    trial = _Trial(model, _random_texts(UNEQUAL), UNEQUAL, abilities, CHUNK)
    try:
        for number in range(len(UNEQUAL)):
            trial.step(trial.prefill([number]))
    except Exception:  # noqa: BLE001 - any model code may run here, and some refuse what they cannot do
        return False
    return trial.worst_error() <= TOLERANCE


@torch.inference_mode()
def _copies(model: Any, abilities: RowAbilities) -> bool:
    """Compare rows that begin with copies of another row's first positions with each row alone."""
    shared, *texts = _random_texts((CHUNK, *EQUAL))
    if not may_cut(new_unit(model.config).cache):
        return False
    texts = [shared[:CHUNK] + text[CHUNK:] for text in texts]
    trial = _Trial(model, texts, EQUAL, abilities)
    first = trial.prefill([0])
    prefix = RowPrefix([first.cut(0, 0, 4), first.cut(0, 4, CHUNK)], CHUNK)
    trial.step(first)
    trial.step(trial.prefill([1, 2], [prefix, RowPrefix(prefix.blocks[:1], 3)]))
    return trial.worst_error() <= TOLERANCE


def _random_texts(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length + 5,), generator=generator).tolist() for length in lengths]


def _run_trial(trial: _Trial) -> None:
    unit = trial.prefill([0, 1])
    trial.step(unit)
    if trial.abilities.moving:
        unit.join(_prefill_and_step(trial, 2))
        trial.step(unit)
    kept = [number for number in reversed(unit.numbers) if number != 1]
    unit.take(kept)
    trial.step(unit)


def _prefill_and_step(trial: _Trial, number: int) -> Unit:
    unit = trial.prefill([number])
    trial.step(unit)
    return unit


def _unknown_layer(model: Any) -> str:
    try:
        require_known(new_unit(model.config).cache)
    except UnknownCacheLayer as error:
        return str(error)
    return ""


def _tiny_model(config: PreTrainedConfig, seed: int) -> Any:
    tiny = shrink(config)
    tiny._attn_implementation = config._attn_implementation
    tiny._experts_implementation = "eager"
    count = sum(parameter.numel() for parameter in build_on_meta(tiny, torch.float32).parameters())
    if count > MAX_PARAMETERS:
        raise CheckpointError(f"its small copy still has {count} parameters", config.model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(tiny)._from_config(tiny, dtype=torch.float32).eval()
    correct_positions(model)
    correct_blocks(model)
    return model
