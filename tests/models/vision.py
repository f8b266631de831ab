"""Tiny random vision-language models with their processors, and what transformers itself says of an image prompt."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow import ImagePrompt
from expertflow.ipc.shared.attachments import TOKEN_TYPES, is_of_positions
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.runtime.verify.reference import logits_with_images
from expertflow.tests.models.families import _COMMON, draw_constants, remember_longer
from expertflow.tests.models.kimi_images import torchvision_works
from expertflow.tests.models.vision_families import FAMILIES
from expertflow.workers.model.architecture import model_class
from PIL import Image
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

VISION_FAMILIES = tuple(FAMILIES)
VOCABULARY = 128
IMAGE = "<|image_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
SPECIAL = ("<pad>", "<s>", "</s>", IMAGE, "<|video_pad|>", START, END, "<|video_start|>", "<|video_end|>")
IMAGE_ID = SPECIAL.index(IMAGE)
OF_IMAGES = (IMAGE_ID, SPECIAL.index(START), SPECIAL.index(END))


def vision_config(family: str) -> PreTrainedConfig:
    own = FAMILIES[family]
    values: dict[str, Any] = {"text_config": _COMMON | own.text, "vision_config": own.vision, **own.whole}
    config = CONFIG_MAPPING[family](**values)
    config.image_token_id, config.video_token_id = IMAGE_ID, IMAGE_ID + 1
    config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family]]
    return config


def save_vision(family: str, folder: Path, seed: int = 0) -> None:
    """A random model, its tokenizer of words w0, w1, … and its image processor, as a published folder has them."""
    config, own = vision_config(family), FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)._from_config(config, dtype=torch.float32)
        draw_constants(model, 0.2)
        remember_longer(model)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    own.image_processor(**own.pixels).save_pretrained(folder)
    if own.processor:
        (folder / "processor_config.json").write_text(json.dumps(own.processor))


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Added tokens stay whole whatever the class that a family's tokenizer is loaded with does to the rest.
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in words[len(SPECIAL) :]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": IMAGE,
            "image_start_token": START,
            "image_end_token": END,
            "video_token": "<|video_pad|>",
            "video_start_token": "<|video_start|>",
            "video_end_token": "<|video_end|>",
        },
    )


def picture(width: int, height: int, seed: int) -> bytes:
    """A PNG file of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def image_prompts() -> list[ImagePrompt | list[int]]:
    """One image, none, two of other sizes, the first text with another image, typed image tokens without an image.

    None ends with an image: there `generate` counts positions on from the last column of that image, other than the
    model itself (see `teacher_forced`).
    """
    return [
        ImagePrompt(f"w1 {IMAGE} w2 w3", [picture(20, 30, 0)]),
        [9, 12, 7, 30, 31],
        ImagePrompt(f"w4 {IMAGE} w5 {IMAGE} w6 w7 w8", [picture(40, 16, 1), picture(24, 24, 2)]),
        ImagePrompt(f"w1 {IMAGE} w2 w3", [picture(20, 30, 3)]),
        ImagePrompt(f"w9 w10 {START} {IMAGE} {END} w11", [picture(16, 48, 4)]),
        [8, IMAGE_ID, 9, IMAGE_ID],
    ]


def skip_without_processor(family: str) -> None:
    """For tests of the client's part."""
    if FAMILIES[family].needs and not torchvision_works():
        pytest.skip(
            f"{family}: its image processor needs a {FAMILIES[family].needs} that fits the torch installed here"
        )


def read_prompt(
    frontend: ImagePreprocessor, prompt: ImagePrompt, reference: VisionReference
) -> tuple[list[int], bytes]:
    """Ids and attachment as the client makes them; by hand where the image processor cannot run."""
    if not reference.needs or torchvision_works():
        return frontend.read(prompt, str(reference.folder))
    inputs = reference.inputs(prompt)
    ids = inputs.pop("input_ids")[0]
    inputs[TOKEN_TYPES] = (ids == IMAGE_ID)[None].long()
    kept = {name: each[0] if is_of_positions(name) else each for name, each in inputs.items()}
    return ids.tolist(), save({name: each.contiguous() for name, each in kept.items()})


class VisionReference:
    """Resident transformers in float32; prompts are put together here, by the image processor and words alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = AutoConfig.from_pretrained(folder)
        self._family, kind = config.model_type, model_class(config)
        self.model: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
        own = FAMILIES[self._family]
        self.needs = own.needs
        by_hand = own.image_processor(**own.pixels) if own.needs else None
        self._images: Any = by_hand or AutoImageProcessor.from_pretrained(folder)

    def inputs(self, prompt: ImagePrompt | list[int]) -> dict[str, torch.Tensor]:
        """What `generate` takes."""
        if not isinstance(prompt, ImagePrompt):
            return {"input_ids": torch.tensor([prompt])}
        files = [Image.open(io.BytesIO(image)) for image in prompt.images if isinstance(image, bytes)]
        made = dict(self._images(images=files, return_tensors="pt"))
        made = {name: made[name] for name in made if name != "num_crops"}  # not the model's
        counts = iter(FAMILIES[self._family].tokens(made))
        words = (word for word in prompt.text.split())
        ids = [token for word in words for token in self._tokens(word, counts)]
        types = {TOKEN_TYPES: [int(token == IMAGE_ID) for token in ids]}
        types["moe_mm_token_type_ids"] = [int(token in OF_IMAGES) for token in ids]
        wanted = inspect.signature(self.model.forward).parameters
        made |= {name: torch.tensor([each]) for name, each in types.items() if name in wanted}
        return made | {"input_ids": torch.tensor([ids])}

    @torch.inference_mode()
    def greedy(self, prompt: ImagePrompt | list[int], count: int) -> list[int]:
        """What `generate` says of this prompt alone; end-of-sequence ignored."""
        inputs = self.inputs(prompt)
        ids = inputs["input_ids"]
        options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
        self.model.generation_config.eos_token_id = None
        return self.model.generate(**inputs, **options)[0, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def teacher_forced(self, prompt: ImagePrompt | list[int], generated: list[int]) -> torch.Tensor:
        """Logits [1 + generated, vocabulary] of the sequence alone, from the last token of the prompt on."""
        inputs = self.inputs(prompt)
        prompt_ids = inputs.pop("input_ids")[0].tolist()
        if inputs:
            images = {name: each[0] if is_of_positions(name) else each for name, each in inputs.items()}
            return logits_with_images(self.model, prompt_ids, generated, images)
        self.model.model.rope_deltas = None  # of an earlier sequence
        return self.model(torch.tensor([prompt_ids + generated])).logits[0, len(prompt_ids) - 1 :]

    @staticmethod
    def _tokens(word: str, counts: Iterator[int]) -> list[int]:
        if word == IMAGE:
            return [IMAGE_ID] * next(counts)
        if word in SPECIAL:
            return [SPECIAL.index(word)]
        return [len(SPECIAL) + int(word.removeprefix("w"))]
