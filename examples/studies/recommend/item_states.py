"""Frozen encoders: hidden states of all items from static word vectors of their texts, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .readers.rows import ItemFacts

Embed = Callable[[list[str]], np.ndarray]
"""Texts -> float32 [texts, width]."""
SIDE_LAYERS = 2


def open_encoder() -> Embed:
    """Return wordllama's static vectors, 256 wide, from its own wheel; nothing is downloaded.

    Its own search misses the tokenizer that it carries, so its folder is named as the cache.
    """
    from wordllama import WordLlama, wordllama

    own = Path(wordllama.__file__).parent
    encoder = WordLlama.load(cache_dir=own, disable_download=True)
    return lambda texts: np.asarray(encoder.embed(texts))


def item_texts(facts: ItemFacts) -> tuple[str, str]:
    """Return the texts of the two modalities: the title; labels and decade. An empty text has the vector 0."""
    decade = f"{facts.year // 10 * 10}s" if facts.year else ""
    return facts.title, " ".join((*facts.labels, decade)).strip()


def item_states(facts: list[ItemFacts], embed: Embed) -> Tensor:
    """Return float32 [2, 1 + SIDE_LAYERS, items, width], the states of each modality.

    A static vector has no layers: the input and the states of all layers are the same vector, of mean length 1.
    """
    texts = [item_texts(item) for item in facts]
    modalities = [embed([pair[number] for pair in texts]) for number in range(2)]
    scaled = [vectors / max(float(np.linalg.norm(vectors, axis=1).mean()), 1e-12) for vectors in modalities]
    stacked = torch.from_numpy(np.stack(scaled).astype(np.float32))
    return stacked[:, None].expand(-1, 1 + SIDE_LAYERS, -1, -1).contiguous()
