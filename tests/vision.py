"""Tiny random vision-language models with their processors, and what transformers itself says of an image prompt."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from expertflow import ImagePrompt
from expertflow.runtime.verify.reference import logits_with_images
from expertflow.workers.checkpoint.architecture import model_class
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorPil,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.families import _COMMON, draw_constants, remember_longer

VISION_FAMILIES = ("qwen3_vl_moe", "glm4v_moe", "qwen3_5_moe", "ernie4_5_vl_moe")
VOCABULARY = 128
IMAGE = "<|image_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
SPECIAL = ("<pad>", "<s>", "</s>", IMAGE, "<|video_pad|>", START, END, "<|video_start|>", "<|video_end|>")
IMAGE_ID = SPECIAL.index(IMAGE)
OF_IMAGES = (IMAGE_ID, SPECIAL.index(START), SPECIAL.index(END))
PATCH, MERGE = 4, 2

_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 4,
    "out_hidden_size": _COMMON["hidden_size"],
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}

_OWN: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_vl_moe": {
        "text": {
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
        "vision": {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    },
    "glm4v_moe": {
        "text": {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "head_dim": 16,
            "first_k_dense_replace": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        },
        "vision": {"image_size": 32},
    },
    "qwen3_5_moe": {
        "text": {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        },
        "vision": {"num_position_embeddings": 64},
    },
    "ernie4_5_vl_moe": {
        "text": {
            "hidden_size": 64,
            "moe_num_experts": 8,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [32, 16],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        },
        "vision": {},
    },
}
_NO_SETTINGS_OF: dict[str, tuple[str, ...]] = {"ernie4_5_vl_moe": ("out_hidden_size", "temporal_patch_size")}
_FRAMES: dict[str, int] = {"ernie4_5_vl_moe": 1}
"""Copies of an image that a patch goes through, if not two."""

_IMAGE_PROCESSORS: dict[str, Any] = {
    "qwen3_vl_moe": Qwen2VLImageProcessorPil,
    "glm4v_moe": Glm4vImageProcessorPil,
    "qwen3_5_moe": Qwen2VLImageProcessorPil,
    "ernie4_5_vl_moe": Ernie4_5_VLMoeImageProcessorPil,
}


def vision_config(family: str) -> PreTrainedConfig:
    own = _OWN[family]
    vision = {name: value for name, value in _VISION.items() if name not in _NO_SETTINGS_OF.get(family, ())}
    values: dict[str, Any] = {"text_config": _COMMON | own["text"], "vision_config": vision | own["vision"]}
    values |= {"image_token_id": IMAGE_ID, "video_token_id": IMAGE_ID + 1}
    config = CONFIG_MAPPING[family](**values)
    config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family]]
    return config


def save_vision(family: str, folder: Path, seed: int = 0) -> None:
    """A random model, its tokenizer of words w0, w1, … and its image processor, as a published folder has them."""
    config = vision_config(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)._from_config(config, dtype=torch.float32)
        draw_constants(model, 0.2)
        remember_longer(model)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    image_processor = _IMAGE_PROCESSORS[family]
    sizes = {"shortest_edge": 64, "longest_edge": 1024}
    frames = _FRAMES.get(family, 2)
    image_processor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=frames, size=sizes).save_pretrained(folder)


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


class VisionReference:
    """Resident transformers in float32; prompts are put together here, by the image processor and words alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        kind = model_class(AutoConfig.from_pretrained(folder))
        self.model: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self._images: Any = AutoImageProcessor.from_pretrained(folder)

    def inputs(self, prompt: ImagePrompt | list[int]) -> dict[str, torch.Tensor]:
        """What `generate` takes."""
        if not isinstance(prompt, ImagePrompt):
            return {"input_ids": torch.tensor([prompt])}
        files = [Image.open(io.BytesIO(image)) for image in prompt.images if isinstance(image, bytes)]
        made = dict(self._images(images=files, return_tensors="pt"))
        counts = iter((made["image_grid_thw"].prod(-1) // MERGE**2).tolist())
        words = (word for word in prompt.text.split())
        ids = [token for word in words for token in self._tokens(word, counts)]
        made |= {
            "input_ids": torch.tensor([ids]),
            "mm_token_type_ids": torch.tensor([[int(t == IMAGE_ID) for t in ids]]),
        }
        if "moe_mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            made["moe_mm_token_type_ids"] = torch.tensor([[int(t in OF_IMAGES) for t in ids]])
        return made

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
            images = {name: each[0] if name.endswith("token_type_ids") else each for name, each in inputs.items()}
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
