"""Answers of a model in transformers: the likeliest first token behind a prompt, and the likelihood of given words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from expertflow.errors import UsageError
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from ..scenes.layout import SIZE
from ..vlm.architectures import PATCH
from ..vlm.batches import image_prefix, to_patches
from ..vlm.vocabulary import EOS_ID, IMAGE_ID, build_tokenizer

_ROWS = 64
ImageFile = Path | bytes


def image_pixels(image: ImageFile) -> np.ndarray:
    """Return uint8 [SIZE, SIZE, 3] of a path or of a file's bytes. Raises UsageError for what is no image."""
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return np.asarray(opened.convert("RGB").resize((SIZE, SIZE)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = f"an image of {len(image)} bytes in the table" if isinstance(image, bytes) else str(image)
        raise UsageError(f"is no image that can be read: {error}", where, "Download the data again") from error


class Answerer:
    """A model with its tokenizer; every answer is one token, since each word and name is one."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._tokenizer: PreTrainedTokenizerFast = build_tokenizer()

    def words(self, prompts: Sequence[str], images: Sequence[ImageFile]) -> list[str]:
        """Return the likeliest word behind each prompt."""
        tokens = self.logits(prompts, images).argmax(-1)
        return [str(self._tokenizer.decode([token])).strip() for token in tokens.tolist()]

    def log_probabilities(
        self, prompts: Sequence[str], images: Sequence[ImageFile], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each of a prompt's choices; every choice is one token."""
        scores = self.logits(prompts, images).log_softmax(-1)
        ids = [[self._tokenizer.encode(f" {each}", add_special_tokens=False)[0] for each in row] for row in choices]
        return [scores[place, row].tolist() for place, row in enumerate(ids)]

    @torch.inference_mode()
    def logits(self, prompts: Sequence[str], images: Sequence[ImageFile]) -> torch.Tensor:
        """Return float32 [prompts, vocabulary] behind each prompt. Rows are padded on the right, which none sees."""
        parts = []
        for start in range(0, len(prompts), _ROWS):
            rows = [self._ids(prompt) for prompt in prompts[start : start + _ROWS]]
            pixels = np.stack([image_pixels(image) for image in images[start : start + _ROWS]])
            parts.append(self._last_logits(rows, pixels))
        return torch.cat(parts)

    def _ids(self, prompt: str) -> list[int]:
        return image_prefix() + self._tokenizer.encode(prompt, add_special_tokens=False)

    def _last_logits(self, rows: list[list[int]], pixels: np.ndarray) -> torch.Tensor:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [EOS_ID] * (longest - len(row)) for row in rows])
        hidden = self._model.model(**model_inputs(ids, pixels)).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows])
        return self._model.lm_head(hidden[torch.arange(len(rows)), ends])


def model_inputs(ids: torch.Tensor, pixels: np.ndarray) -> dict[str, Any]:
    """Return the forward's arguments for ids [rows, tokens] and pixels uint8 [images, SIZE, SIZE, 3] of all rows."""
    side = SIZE // PATCH
    return {
        "input_ids": ids,
        "pixel_values": to_patches(pixels),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(pixels)),
        "mm_token_type_ids": (ids == IMAGE_ID).int(),
    }
