"""What routing looks like: specialisation by modality, experts that a unit needs, loads into a quarter of the slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..pope.control import SimulatedCache
from ..vlm.batches import Batch, BatchSource
from ..vlm.routers import RouterRecorder
from ..vlm.vocabulary import build_tokenizer
from .smoes import MODALITIES, expert_bins

_ROWS, _SEED = 64, 4242
UNITS = (1, 8, 32)
BUDGET = 0.25


@dataclass(frozen=True)
class RoutingTrace:
    """Choices [layers, rows, tokens, k] of unseen rows; `of_images` [tokens] says which are an image's."""

    chosen: torch.Tensor
    of_images: torch.Tensor
    experts: int


@torch.inference_mode()
def trace_routing(model: nn.Module, experts: int) -> RoutingTrace:
    """Return the routing of rows that training did not draw."""
    batch: Batch = BatchSource(build_tokenizer(), _ROWS, _SEED).draw()
    recorder = RouterRecorder(model)
    inner: Any = model.model
    with recorder.recording():
        inner(**batch.model_inputs())
    chosen = torch.stack(recorder.chosen)
    return RoutingTrace(chosen.view(len(chosen), *batch.ids.shape, -1), batch.of_images[0], experts)


def modality_counts(trace: RoutingTrace) -> torch.Tensor:
    """Return float [layers, modalities, experts]: the share of a modality's choices that an expert gets."""
    shares = torch.zeros(len(trace.chosen), MODALITIES, trace.experts)
    for layer, chosen in enumerate(trace.chosen):
        for kind, mask in enumerate((~trace.of_images, trace.of_images)):
            counts = torch.bincount(chosen[:, mask].flatten(), minlength=trace.experts)
            shares[layer, kind] = counts / counts.sum()
    return shares


def specialisation_index(shares: torch.Tensor) -> list[float]:
    """Return for each layer how far its experts are from serving both modalities alike, 0 to 1.

    An expert's distance is |text − image| / (text + image), each modality weighted alike; the mean is over the experts
    that are used.
    """
    text, image = shares[:, 0], shares[:, 1]
    used = (text + image) > 0
    distance = (text - image).abs() / (text + image).clamp_min(1e-12)
    return [float(each[mask].mean()) for each, mask in zip(distance, used, strict=True)]


def routing_facts(trace: RoutingTrace) -> dict[str, Any]:
    """Return the specialisation by layer, the experts that steps need, and the loads of a cache of a quarter."""
    shares = modality_counts(trace)
    bins = [expert_bins(each) if trace.experts > 1 else torch.zeros(1, dtype=torch.long) for each in shares]
    return {
        "msi": specialisation_index(shares),
        "experts_a_decode_step": {str(rows): _union(trace, rows) for rows in UNITS},
        "text_in_text_bins": _text_in_text_bins(shares, bins),
        "loads_a_token": {name: _loads(trace, name, bins) for name in ("lru", "bins")},
    }


def _text_positions(trace: RoutingTrace) -> list[int]:
    return torch.nonzero(~trace.of_images).flatten().tolist()[2:]


def _union(trace: RoutingTrace, rows: int) -> float:
    """Return the mean number of distinct experts, over all layers, of a step of so many rows of text."""
    chosen = trace.chosen.numpy()
    sizes = [
        sum(len(np.unique(layer[start : start + rows, place])) for layer in chosen)
        for start in range(0, _ROWS, rows)
        for place in _text_positions(trace)[::4]
    ]
    return float(np.mean(sizes))


def _text_in_text_bins(shares: torch.Tensor, bins: list[torch.Tensor]) -> float:
    """Return the share of text's choices that fall into the upper half of the bins, which hold the text experts."""
    inside = [float(each[0][own > int(own.max()) // 2].sum()) for each, own in zip(shares, bins, strict=True)]
    return float(np.mean(inside))


def _loads(trace: RoutingTrace, policy: str, bins: list[torch.Tensor], rows: int = 8) -> float:
    """Return experts loaded a token of text with a quarter of the slots, prompts of other requests in between.

    lru: the least recently used expert goes. bins: the same, but an expert of an image bin goes before any of a text
    bin once the prompt has been read, and the decode steps of a unit follow one another.
    """
    cache = SimulatedCache(max(1, round(BUDGET * trace.experts * len(trace.chosen))))
    chosen, tokens = trace.chosen.numpy(), 0
    for start in range(0, _ROWS, rows):
        for place in [None, *_text_positions(trace)]:
            for layer in range(len(chosen)):
                unit = chosen[layer, start : start + rows]
                wanted = unit[:, trace.of_images.numpy()] if place is None else unit[:, place]
                cache.use(layer, np.unique(wanted).tolist())
            if place is None and policy == "bins":
                _release_images(cache, bins)
            tokens += 0 if place is None else rows
    return cache.misses / max(1, tokens)


def _release_images(cache: SimulatedCache, bins: list[torch.Tensor]) -> None:
    """Let the experts of the lower half of the bins be the next to go."""
    for layer, own in enumerate(bins):
        held = cache.held_of(layer)
        for _, expert in [key for key in held if key[0] == layer]:
            if int(own[expert]) <= int(own.max()) // 2:
                held.move_to_end((layer, expert), last=False)
