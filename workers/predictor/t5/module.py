"""The transformer itself, with torch and transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .shape import PAD, T5Shape


class T5Module(nn.Module):
    """The encoder reads the prompt; the decoder reads the tokens known so far, and says how each of them is routed.

    One linear head turns the decoder's output into a logit for every expert of every layer.
    """

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = T5Model(
            T5Config(
                vocab_size=shape.vocabulary,
                d_model=shape.width,
                d_kv=shape.head,
                d_ff=shape.inner,
                num_layers=shape.blocks,
                num_decoder_layers=shape.blocks,
                num_heads=shape.heads,
                pad_token_id=PAD,
                dropout_rate=0.0,  # the dice took half of a step on a CPU; training stops early instead
                use_cache=False,
            )
        )
        self.head = nn.Linear(shape.width, shape.layers * shape.experts, bias=False)

    def encode(self, prompts: Tensor) -> Tensor:
        """float [B, P, width] of prompts int64 [B, P], padded right."""
        return self.transformer.encoder(input_ids=prompts, attention_mask=(prompts != PAD).long()).last_hidden_state

    def proceed(self, encoded: Tensor, fresh: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """Logits [T, layers, experts] of the next tokens int64 [T] of a row; `cache` has those before, and gets these.

        `encoded` [1, P, width] is the row's prompt, without padding.
        """
        hidden = self.transformer.decoder(
            input_ids=fresh[None], encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        ).last_hidden_state[0]
        return self.head(hidden).unflatten(-1, (self.shape.layers, self.shape.experts))

    def forward(self, prompts: Tensor, known: Tensor) -> Tensor:
        """Logits [B, T, layers, experts] of known tokens int64 [B, T], padded right; a token sees those before it."""
        hidden = self.transformer.decoder(
            input_ids=known,
            encoder_hidden_states=self.encode(prompts),
            encoder_attention_mask=(prompts != PAD).long(),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden).unflatten(-1, (self.shape.layers, self.shape.experts))


def empty_cache() -> EncoderDecoderCache:
    """For the keys and values of one row."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def padded(sequences: list[list[int]]) -> Tensor:
    """int64 [B, longest], padded right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences], batch_first=True, padding_value=PAD)
