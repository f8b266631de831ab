"""Expert slots filled by a real transfer engine, with canaries around them."""

from __future__ import annotations

import mmap
import queue
import time
from collections.abc import Mapping

import numpy as np
import torch
from expertflow.workers.checkpoint.layout import tensor_positions
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.slots import SlotViews
from expertflow.workers.loader.transfer.expert_sources import ExpertSource, FileSource
from expertflow.workers.loader.transfer.transfers import Transfer, TransferEngine

CANARY = 0xA5
Key = tuple[int, int]
"""MoE layer, expert."""


def make_arena(size_bytes: int) -> np.ndarray:
    """Page-aligned memory, every byte the canary."""
    memory = np.frombuffer(mmap.mmap(-1, size_bytes), dtype=np.uint8)
    memory[:] = CANARY
    return memory


def fill(
    survey: Survey, experts: Mapping[int, Key], memory: np.ndarray, source: ExpertSource | None = None, threads: int = 2
) -> list[Transfer]:
    """Bring `experts` (by slot) into `memory`; the transfers in the order they ended."""
    done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
    engine = TransferEngine(
        source or FileSource(survey), memory, survey.stride_bytes, threads, done.put, time.monotonic_ns
    )
    try:
        for slot, (layer, expert) in experts.items():
            engine.start(slot, layer, expert, urgent=False)
        return [done.get() for _ in experts]
    finally:
        engine.close()


def all_experts(survey: Survey) -> dict[int, Key]:
    """Every expert in its own slot, in reverse so that slot numbers mean nothing."""
    keys = [(layer, expert) for layer in range(survey.layers) for expert in range(survey.experts)]
    return dict(enumerate(reversed(keys)))


def assert_experts_equal(
    survey: Survey, experts: Mapping[int, Key], memory: np.ndarray, reference: Mapping[str, torch.Tensor]
) -> None:
    """Slots hold, bit for bit, the slices of `reference`: a state dict with fused experts."""
    views = SlotViews(memory, survey)
    for slot, (layer, expert) in experts.items():
        for name, ours in views.weights(slot, layer, expert).items():
            whole = reference[f"{survey.module_names[layer]}.{name}"]
            theirs = whole.reshape(survey.experts, *ours.shape)[expert]
            assert ours.dtype == theirs.dtype
            same = torch.equal(ours.reshape(-1).view(torch.uint8), theirs.contiguous().reshape(-1).view(torch.uint8))
            assert same, f"expert {expert} of layer {layer}: {name}"


def payload(survey: Survey, layer: int, expert: int) -> list[slice]:
    """Where in a slot the tensors of an expert lie."""
    positions = tensor_positions(survey)[layer, expert].tolist()
    return [slice(at, at + tensor.count_bytes) for at, tensor in zip(positions, survey.tensors, strict=True)]
