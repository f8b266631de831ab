"""Memory that a model needs, and whether it fits: from file headers or config.json alone, without starting anything."""

from __future__ import annotations

import msgspec

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...workers.checkpoint.survey import ModelSizes
from ...workers.compute.device.memory import device_needs
from ...workers.predictor.memory import predictor_bytes
from ..engine.budgets import plan_budgets
from ..engine.stages import stage_plans

WITH_TORCH_BYTES = 450 * 10**6
WITHOUT_TORCH_BYTES = 80 * 10**6
"""Upper bounds of a process's own memory, checked by tests; compute and its spare import torch."""

CONTEXT_BYTES = 512 * 2**20
"""Memory of an empty CUDA context: an estimate, no GPU was measured."""
_NO_LIMIT = 2**62


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the model alone, in bytes where a name says so."""

    folder: str
    architecture: str
    dtype: str
    context: int
    layers: int
    experts: int
    top_k: int
    expert_bytes: int
    """Size of an expert of the largest kind, if kinds differ."""
    kind_bytes: list[int]
    """Size of one expert of each kind."""
    stored_expert_bytes: int
    """Size of an expert in the files; 0: not known."""
    slot_bytes: int
    experts_bytes: int
    skeleton_bytes: int
    checkpoint_bytes: int
    """Size of the files; 0: not known."""
    weights_here: bool
    """True: the weights are on this machine; else the sizes come from config.json alone."""
    kv_bytes_per_position: int
    """Upper bound for one sequence."""
    kv_bytes_per_row: int
    """Size for one sequence, independent of its length."""
    remarks: list[str]
    """Remarks for the user: limits of this checkpoint, and reasons why it is slow."""


class DeviceFit(msgspec.Struct, frozen=True, kw_only=True):
    """Use of one device's memory."""

    name: str
    parts: dict[str, int]
    """Purpose -> bytes; working memory and the context are estimates."""
    total_bytes: int
    memory_bytes: int
    """Memory of the device; 0: not known."""
    fits: bool
    """True also if the memory of the device is not known."""
    smallest_bytes: int
    """Total with a single slot."""
    largest_slots: int
    """Largest number of slots that fits; 0: not even one, or not known."""
    largest_slots_bytes: int


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The configured budgets beside the available memory, in bytes where a name says so."""

    slots: int
    slots_share: float
    slots_bytes: int
    host_bytes: int
    kv_bytes: int
    skeleton_bytes: int
    process_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    smallest_bytes: int
    """Total with a single slot."""
    largest_slots: int
    """Largest number of slots that fits; 0: not even one."""
    largest_slots_bytes: int
    device: DeviceFit | None = None
    """Memory of the device, which then holds slots, caches and skeleton. Totals here exclude it; `fits` covers both."""


def model_needs(survey: ModelSizes) -> Needs:
    """Return the sizes of a model."""
    return Needs(
        folder=survey.folder,
        architecture=survey.architecture,
        dtype=survey.dtype,
        context=survey.context,
        layers=survey.layers,
        experts=survey.experts,
        top_k=survey.top_k,
        expert_bytes=survey.expert_bytes,
        kind_bytes=survey.kind_bytes,
        stored_expert_bytes=survey.stored_expert_bytes,
        slot_bytes=survey.stride_bytes,
        experts_bytes=survey.experts_bytes,
        skeleton_bytes=survey.loaded_skeleton_bytes,
        checkpoint_bytes=survey.checkpoint_bytes,
        weights_here=survey.weights_here,
        kv_bytes_per_position=survey.rows.kv_bytes_per_position,
        kv_bytes_per_row=survey.rows.kv_bytes_per_row,
        remarks=survey.remarks,
    )


def budget_fit(survey: ModelSizes, config: Config, available_bytes: int, device_bytes: int = 0) -> Fit:
    """Return how the budgets of `config` fit this machine and its device.

    `device_bytes`: memory of the configured device; 0: not known. Raises BudgetError only for a budget that fits no
    machine (below one expert).
    """
    kv_bytes = parse_size(config.kv_memory, "kv_memory").of(available_bytes)
    sized = msgspec.structs.replace(config, kv_memory=f"{kv_bytes}B")
    budgets = plan_budgets(sized, survey, _NO_LIMIT)
    processes = process_bytes(config, survey)
    total = budgets.total_bytes + processes
    device = device_fit(survey, config, budgets.slots, device_bytes) if config.on_device else None
    slot_bytes = 0 if device else survey.stride_bytes  # of this machine's own memory
    others = total - budgets.slots * slot_bytes
    largest = 0 if device else min(max(0, available_bytes - others) // slot_bytes, survey.expert_count)
    return Fit(
        slots=budgets.slots,
        slots_share=budgets.slots / survey.expert_count,
        slots_bytes=budgets.slots_bytes,
        host_bytes=budgets.host_bytes,
        kv_bytes=kv_bytes,
        skeleton_bytes=budgets.skeleton_bytes,
        process_bytes=processes,
        total_bytes=total,
        available_bytes=available_bytes,
        fits=total <= available_bytes and (device is None or device.fits),
        smallest_bytes=others + slot_bytes,
        largest_slots=largest,
        largest_slots_bytes=largest * slot_bytes,
        device=device,
    )


def device_fit(sizes: ModelSizes, config: Config, slots: int, memory_bytes: int) -> DeviceFit:
    """Add up the memory of the configured device without the device, or torch. `memory_bytes` 0: not known."""
    parts = {**device_needs(sizes, config, slots), "CUDA's context": CONTEXT_BYTES}
    total = sum(parts.values())
    others = total - slots * sizes.stride_bytes
    largest = min(max(0, memory_bytes - others) // sizes.stride_bytes, sizes.expert_count)
    return DeviceFit(
        name=config.device,
        parts=parts,
        total_bytes=total,
        memory_bytes=memory_bytes,
        fits=not memory_bytes or total <= memory_bytes,
        smallest_bytes=others + sizes.stride_bytes,
        largest_slots=largest,
        largest_slots_bytes=largest * sizes.stride_bytes,
    )


def process_bytes(config: Config, sizes: ModelSizes) -> int:
    """Return the memory of all processes besides weights, budgets and caches, in bytes.

    The predictor counts with full histories: it grows for the first thousand requests.
    """
    engines, stages = len(config.devices), len(stage_plans(config))
    with_torch = engines * (2 if config.spare_compute else 1)  # compute of each engine and its spare import torch
    others = engines * (stages - 1) + 1  # the supervisor
    return with_torch * WITH_TORCH_BYTES + others * WITHOUT_TORCH_BYTES + engines * predictor_bytes(config, sizes)
