"""Training batches: scenes drawn afresh, as many questions packed behind each image as fit.

A question sees the image and itself, and its positions begin behind the image: for the model each question is the
only one. Otherwise a question asked twice of one image would be answered from the first answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..scenes.drawing import scene_pixels
from ..scenes.layout import SIZE, Scene, training_scene
from ..scenes.questions import Question, description_question, random_question
from .architectures import IMAGE_TOKENS, MERGE, PATCH
from .vocabulary import END_ID, EOS_ID, IMAGE_ID, START_ID

LENGTH = 128
"""Tokens of every training row; the last question is cut off."""
IGNORED = -100
MAX_QUESTIONS = 14


@dataclass(frozen=True)
class Batch:
    """Inputs of a step. `labels` int64 [rows, LENGTH] hold the next token where it belongs to an answer."""

    ids: torch.Tensor
    labels: torch.Tensor
    questions: torch.Tensor
    """int64 [rows, LENGTH], the number of the question that a token belongs to; 0 for the image."""
    patches: torch.Tensor
    """float32 [rows · patches, 3 · PATCH²]."""

    @property
    def of_images(self) -> torch.Tensor:
        """Return bool [rows, LENGTH], true at the image's positions without its marks."""
        return self.ids == IMAGE_ID

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward, `moe_mm_token_type_ids` among them."""
        side = SIZE // PATCH
        marks = (self.ids == START_ID) | (self.ids == END_ID)
        return {
            "input_ids": self.ids,
            "pixel_values": self.patches,
            "image_grid_thw": torch.tensor([[1, side, side]] * len(self.ids)),
            "mm_token_type_ids": self.of_images.int(),
            "moe_mm_token_type_ids": (self.of_images | marks).int(),
            "attention_mask": self.attention(),
            "position_ids": self.positions(),
            "use_cache": False,
        }

    def attention(self) -> torch.Tensor:
        """Return bool [rows, 1, LENGTH, LENGTH], true where a token sees another: image and own question, causally."""
        own = self.questions[:, :, None] == self.questions[:, None, :]
        image = (self.questions == 0)[:, None, :]
        return ((own | image) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[:, None]

    def positions(self) -> torch.Tensor:
        """Return int64 [3, rows, LENGTH]: time, height and width, as the models count them for an image in front."""
        places = torch.arange(LENGTH).expand_as(self.questions)
        starts = torch.full_like(self.questions, LENGTH).scatter_reduce(1, self.questions, places, "amin")
        text = places - starts.gather(1, self.questions) + _GRID_SIDE + 2
        positions = text.expand(3, -1, -1).clone()
        positions[:, :, : IMAGE_TOKENS + 2] = _image_positions()[:, None]
        return positions


_GRID_SIDE = SIZE // PATCH // MERGE


def _image_positions() -> torch.Tensor:
    """Return int64 [3, IMAGE_TOKENS + 2] for the image with its marks."""
    cells = torch.arange(IMAGE_TOKENS)
    inside = torch.stack([torch.zeros_like(cells), cells // _GRID_SIDE, cells % _GRID_SIDE]) + 1
    ends = [torch.full((3, 1), value) for value in (0, _GRID_SIDE + 1)]
    return torch.cat([ends[0], inside, ends[1]], dim=1)


def to_patches(pixels: np.ndarray) -> torch.Tensor:
    """Return float32 [images · patches, 3 · PATCH²] for uint8 [images, SIZE, SIZE, 3], as the image processors do.

    The order is theirs: blocks of MERGE × MERGE patches, row by row; within a patch channel, row, column.
    """
    blocks = SIZE // PATCH // MERGE
    values = torch.from_numpy(pixels.astype(np.float32) / 255.0 * 2.0 - 1.0)
    grid = values.reshape(-1, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    return grid.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * PATCH * PATCH).contiguous()


def image_prefix() -> list[int]:
    """Return the token ids of an image with its marks."""
    return [START_ID, *([IMAGE_ID] * IMAGE_TOKENS), END_ID]


class BatchSource:
    """Draws batches of scenes and questions; its state can be saved, so that a resumed run goes on as it would have."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._known: dict[str, list[int]] = {}
        self.generator = np.random.default_rng(seed)

    def draw(self) -> Batch:
        """Return the next batch."""
        scenes = [training_scene(self.generator) for _ in range(self._rows)]
        rows = [self._packed_row(self._questions(scene)) for scene in scenes]
        ids = torch.tensor([row[0] for row in rows])
        labels, questions = (torch.tensor([row[part] for row in rows]) for part in (1, 2))
        return Batch(ids, labels, questions, to_patches(np.stack([scene_pixels(scene) for scene in scenes])))

    def _questions(self, scene: Scene) -> list[Question]:
        """Return more questions than fit; the first asks for all objects, which teaches most about the image."""
        return [description_question(scene), *(random_question(scene, self.generator) for _ in range(MAX_QUESTIONS))]

    def _packed_row(self, questions: list[Question]) -> tuple[list[int], list[int], list[int]]:
        ids, labels, numbers = image_prefix(), [IGNORED] * (IMAGE_TOKENS + 2), [0] * (IMAGE_TOKENS + 2)
        for number, question in enumerate(questions, start=1):
            prompt, answer = self._encode(question.prompt), [*self._encode(f" {question.answer}"), EOS_ID]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            numbers += [number] * (len(prompt) + len(answer))
            if len(ids) >= LENGTH:
                break
        return ids[:LENGTH], [*labels[1:LENGTH], IGNORED], numbers[:LENGTH]

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]
