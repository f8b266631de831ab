"""Units of models with an encoder: it sees the prompts once, and the decoder starts from a token of its own.

A row's ids are its prompt and its output so far, as everywhere; here they are kept apart. The cache holds the
decoder's layers, then as many with the keys and values of the prompt, which are padded on the left like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import MoEModelOutput

from ...errors import CheckpointError
from ...ipc.messages import RequestRow
from . import cache_rows as cache_rows
from .cache_blocks import RowPrefix
from .growing_cache import GrowingLayer
from .images import RowImages
from .step_input import StepInput, StepTokens
from .unit import Unit
from .unit_rows import UnitRow


def decoder_start(config: Any) -> int:
    """Return the token before the first of an output. Raises CheckpointError if the configuration has none."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = config.pad_token_id  # as T5 and Switch do
    if start is None:
        raise CheckpointError("has no decoder_start_token_id", "config.json", "Set it to the model's own")
    return int(start)


def decoder_layers(config: Any) -> int:
    """Return the number of decoder layers. (For relatives of T5 the library's view of a decoder has the encoder's.)"""
    own = getattr(config, "num_decoder_layers", None)
    return config.get_text_config(decoder=True).num_hidden_layers if own is None else own


def new_caches(config: Any) -> DynamicCache:
    """Return a cache with the layers of the decoder's own tokens, then the layers of the prompt."""
    cache = DynamicCache()
    count = decoder_layers(config)
    cache.layers = [*(GrowingLayer() for _ in range(count)), *(DynamicLayer() for _ in range(count))]
    return cache


def library_cache(cache: Cache) -> EncoderDecoderCache:
    """Return the same layers as the library's models take them."""
    half = len(cache.layers) // 2
    parts = DynamicCache(), DynamicCache()
    parts[0].layers, parts[1].layers = cache.layers[:half], cache.layers[half:]
    return EncoderDecoderCache(*parts)


@dataclass
class EncoderDecoderUnit(Unit):
    """Sequences that step together over one decoder cache and one cache of their prompts."""

    source_length: int = 0
    """Columns of the prompts, padding included."""
    _prompts: dict[int, list[int]] = field(default_factory=dict)

    def prepare_prefill(
        self,
        rows: Sequence[RequestRow],
        images: Sequence[RowImages | None] = (),
        prefixes: Sequence[RowPrefix] = (),
    ) -> StepInput:
        """Return all prompts for the encoder; for the decoder its start and what was generated. No row has images."""
        start = decoder_start(self.config)
        prompts = {row.number: row.token_ids[: len(row.token_ids) - row.generated] for row in rows}
        begun = [replace_ids(row, [start, *row.token_ids[len(prompts[row.number]) :]]) for row in rows]
        step = super().prepare_prefill(begun)
        self._prompts, self.source_length = prompts, max(map(len, prompts.values()))
        pad = self.config.pad_token_id or 0  # positions may be counted by it
        ids = [[pad] * (self.source_length - len(prompt)) + prompt for prompt in prompts.values()]
        return replace(step, source_ids=torch.tensor(ids).to(self.device), source_tokens=self._source_tokens())

    def _source_ids(self, row: UnitRow) -> list[int]:
        return self._prompts[row.number]

    def whole_rows(self) -> list[RequestRow]:
        return [replace_ids(row, self._prompts[row.number] + row.token_ids[1:]) for row in super().whole_rows()]

    def _forward(self, model: Any, step: StepInput) -> Any:
        mask = self._source_mask()
        if step.source_ids is not None:
            prompts: dict[str, Any] = {"input_ids": step.source_ids}
        else:  # its keys and values are cached: only its shape is looked at
            states = torch.zeros(1, device=self.device).expand(*mask.shape, self.config.hidden_size)
            prompts = {"encoder_outputs": MoEModelOutput(last_hidden_state=states)}  # pyright: ignore
        return model(
            **prompts,
            attention_mask=mask,
            decoder_input_ids=step.input_ids,
            decoder_attention_mask=step.attention_mask,
            past_key_values=library_cache(self.cache),
        )

    def join(self, other: Unit) -> None:
        if isinstance(other, EncoderDecoderUnit) and other.rows:
            prompts, length = other._prompts, other.source_length
            super().join(other)
            self._prompts = self._prompts | prompts
            self.source_length = max(self.source_length, length)

    def _split_rows(self, other: Unit, indices: list[int], rest: list[int]) -> None:
        if isinstance(other, EncoderDecoderUnit):
            other._prompts, other.source_length = dict(self._prompts), self.source_length
        super()._split_rows(other, indices, rest)

    def _new_cache(self) -> DynamicCache:
        return new_caches(self.config)

    def _clear(self) -> None:
        super()._clear()
        self._prompts, self.source_length = {}, 0

    def _trim_cache(self, columns: int) -> None:
        """Trim the decoder's layers by `columns`; those of the prompt have a padding of their own."""
        own, prompts = library_cache(self.cache).self_attention_cache, library_cache(self.cache).cross_attention_cache
        cache_rows.trim(own, columns)
        longest = max(len(self._prompts[row.number]) for row in self._rows)
        cache_rows.trim(prompts, self.source_length - longest)
        self.source_length = longest
        self.cache.layers = own.layers + prompts.layers

    def _pads(self) -> Tensor:
        return torch.tensor([[self.source_length - len(self._prompts[row.number])] for row in self._rows])

    def _source_mask(self) -> Tensor:
        return (torch.arange(self.source_length) >= self._pads()).long().to(self.device)

    def _source_tokens(self) -> StepTokens:
        real = np.arange(self.source_length) >= self._pads().numpy()
        pairs = [(row.number, at) for row in self._rows for at in range(len(self._prompts[row.number]))]
        return StepTokens.of(
            real,
            self.device,
            [self._prompts[number][at] for number, at in pairs],
            [number for number, _ in pairs],
            [at for _, at in pairs],
        )


def replace_ids(row: RequestRow, token_ids: list[int]) -> RequestRow:
    """Return the same row with other ids."""
    return msgspec.structs.replace(row, token_ids=token_ids)


def new_unit(config: PreTrainedConfig, *args: Any, **options: Any) -> Unit:
    """Return an empty unit for models of this configuration; see `Unit`."""
    cls = EncoderDecoderUnit if config.is_encoder_decoder else Unit
    return cls(config, *args, **options)


def logits_alone(model: Any, prompt: list[int], following: list[int], where: torch.device | str = "cpu") -> Tensor:
    """Return the logits [following + 1, vocabulary] of a library's model after `prompt` and each id of `following`.

    `where` is the model's device. A decoder gets one id at a time, as when it generates: several at once would compete
    for the capacity of experts.
    """
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([prompt + following], device=where)).logits[0, len(prompt) - 1 :]
    encoded = model.get_encoder()(input_ids=torch.tensor([prompt], device=where))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    every = torch.ones(1, len(prompt), dtype=torch.long, device=where)
    steps = [
        model(
            encoder_outputs=encoded,
            attention_mask=every,
            decoder_input_ids=torch.tensor([[token]], device=where),
            past_key_values=cache,
        )
        for token in (decoder_start(model.config), *following)
    ]
    return torch.cat([step.logits[0] for step in steps])
