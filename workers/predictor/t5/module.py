"""The paper's transformer, with torch and transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ....errors import UsageError
from ..base.predictor_file import REMEDY
from .file import FIRST, PAD, T5File, T5Shape


class T5Module(nn.Module):
    """T5 whose encoder reads the prompt and whose decoder reads the tokens known so far (arXiv 2410.17954).

    One linear head turns the decoder's output for a token into a logit for every expert of every layer.
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
                dropout_rate=0.0,  # dropout took half of a step on a CPU; training stops early instead
                use_cache=False,
            )
        )
        self.head = nn.Linear(shape.width, shape.layers * shape.experts, bias=False)

    def encode(self, prompts: Tensor) -> Tensor:
        """Return float [B, P, width] for prompts int64 [B, P], padded right."""
        return self.transformer.encoder(input_ids=prompts, attention_mask=(prompts != PAD).long()).last_hidden_state

    def decode(self, encoded: Tensor, fresh: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """Return logits [T, layers, experts] for the next tokens int64 [T] of a row, and add them to `cache`.

        `cache` holds the tokens before them. `encoded` [1, P, width] is the row's prompt, without padding.
        """
        hidden = self.transformer.decoder(
            input_ids=fresh[None], encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        ).last_hidden_state[0]
        return self.head(hidden).unflatten(-1, (self.shape.layers, self.shape.experts))

    def forward(self, prompts: Tensor, known: Tensor) -> Tensor:
        """Return logits [B, T, layers, experts] for known tokens int64 [B, T], padded right, by causal attention."""
        hidden = self.transformer.decoder(
            input_ids=known,
            encoder_hidden_states=self.encode(prompts),
            encoder_attention_mask=(prompts != PAD).long(),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden).unflatten(-1, (self.shape.layers, self.shape.experts))


def load_module(file: T5File) -> T5Module:
    """Return the trained module of a file.

    Raises UsageError if its arrays do not fit the sizes that it states, before memory is taken for these sizes.
    """
    shape, weights = file.header.shape, file.weights
    try:
        if not 0 < shape.blocks <= len(weights) or shape.window < 1:
            raise ValueError(f"{shape.blocks} blocks, a window of {shape.window}")
        if file.tokens.ndim != 1 or file.tokens.dtype.kind not in "iuU" or len(file.tokens) + FIRST > shape.vocabulary:
            raise ValueError(f"tokens {file.tokens.dtype} {file.tokens.shape} for {shape.vocabulary} input ids")
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in T5Module(shape).state_dict().items()}
        if wanted != {name: array.shape for name, array in weights.items()}:
            raise ValueError("weights of other names or shapes")
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        what = f"its arrays do not fit its sizes ({str(error).partition(chr(10))[0]})"
        raise UsageError(what, file.where, REMEDY) from error
    module = T5Module(shape).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return module


def empty_cache() -> EncoderDecoderCache:
    """Return a cache for the keys and values of one row."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def pad(sequences: list[list[int]]) -> Tensor:
    """Return int64 [B, longest], padded right."""
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD)
