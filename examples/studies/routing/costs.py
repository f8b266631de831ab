"""Costs of a kind: operations and bytes by counting, latency, throughput and memory measured in transformers."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from ..scenes.layout import SIZE
from ..vlm.architectures import HIDDEN
from ..vlm.batches import image_prefix
from .answering import model_inputs
from .kinds import Kind

BATCHES = (1, 2, 4, 8, 16, 32)
IMAGES = (1, 2, 4)
QUESTION_TOKENS = 20
_REPEATS = 5
_FLOAT_BYTES = 4
_PROJECTIONS = 3
"""Gate, up and down."""


def expert_flops(kind: Kind, layers: int) -> int:
    """Return multiply-adds counted twice that a token's experts take in all layers, the router included."""
    router = 2 * HIDDEN * kind.experts if kind.router != "hash" else 0
    return layers * (2 * _PROJECTIONS * HIDDEN * kind.active_width + router)


def expert_bytes(kind: Kind, activated: float) -> float:
    """Return bytes of float32 weights that a step reads for so many activated experts, all layers together."""
    return activated * _PROJECTIONS * HIDDEN * kind.width * _FLOAT_BYTES


def measure_costs(model: nn.Module, batches: tuple[int, ...] = BATCHES, images: tuple[int, ...] = IMAGES) -> list[Any]:
    """Return a row for each batch size and number of images: times of a prompt and of a decode step, peak memory."""
    return [_measure(model, rows, count) for count in images for rows in batches]


@torch.inference_mode()
def _measure(model: nn.Module, rows: int, images: int) -> dict[str, float]:
    ids = torch.tensor([image_prefix() * images + list(range(20, 20 + QUESTION_TOKENS))] * rows)
    pixels = np.random.default_rng(1).integers(0, 255, (rows * images, SIZE, SIZE, 3), dtype=np.uint8)
    prompts, steps = [], []
    _reset_peak()
    before = _peak_kib()
    for _ in range(_REPEATS):
        prompt_s, step_s = _one_round(model, ids, pixels)
        prompts.append(prompt_s)
        steps.append(step_s)
    return {
        "batch": rows,
        "images": images,
        "prompt_tokens": ids.shape[1],
        "prompt_ms": 1e3 * median(prompts),
        "step_ms": 1e3 * median(steps),
        "decode_tokens_per_s": rows / median(steps),
        "prompt_tokens_per_s": ids.numel() / median(prompts),
        "peak_mb": max(0, _peak_kib() - before) / 1024,
    }


def _one_round(model: Any, ids: torch.Tensor, pixels: np.ndarray) -> tuple[float, float]:
    """Return the seconds of a prompt and of one decode step behind it."""
    inputs = model_inputs(ids, pixels)
    begun_s = time.perf_counter()
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    read_s = time.perf_counter()
    token = out.logits[:, -1:].argmax(-1)
    types = torch.zeros_like(token).int()
    model(input_ids=token, mm_token_type_ids=types, past_key_values=out.past_key_values, use_cache=True)
    return read_s - begun_s, time.perf_counter() - read_s


def _reset_peak() -> None:
    """Let the kernel count the peak of this process's memory from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_kib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])
