"""What a model needs and whether it fits: from file headers or the configuration alone, without starting anything."""

from __future__ import annotations

import msgspec

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...workers.checkpoint.survey import ModelSizes
from ...workers.predictor.memory import predictor_bytes
from ..engine.budgets import plan_budgets
from ..engine.stages import stage_plans
from .device_fit import DeviceFit, device_fit

WITH_TORCH_BYTES = 450 * 10**6
WITHOUT_TORCH_BYTES = 80 * 10**6
"""What a process takes besides what it was given: an upper bound that the tests hold (compute imports torch)."""

_NO_LIMIT = 2**62


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Of the model alone."""

    folder: str
    architecture: str
    dtype: str
    context: int
    layers: int
    experts: int
    top_k: int
    expert_bytes: int
    """Of the largest kind, if they differ."""
    kind_bytes: list[int]
    """Of one expert of each kind."""
    stored_expert_bytes: int
    """In the files; 0: not known."""
    slot_bytes: int
    experts_bytes: int
    skeleton_bytes: int
    checkpoint_bytes: int
    """0: not known."""
    weights_here: bool
    """On this machine; else the numbers are from the configuration alone."""
    kv_bytes_per_position: int
    """Of one sequence, at most."""
    kv_bytes_per_row: int
    """Of one sequence, whatever its length."""
    remarks: list[str]
    """What a user should hear of this checkpoint, and why it is slower than others."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What the configured budgets come to, beside the memory there is."""

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
    """In all, with a single slot."""
    largest_slots: int
    """That would fit; 0: not even one."""
    largest_slots_bytes: int
    device: DeviceFit | None = None
    """Where slots, caches and the rest of the model then are: sums here are without them, `fits` is of both."""


def model_needs(survey: ModelSizes) -> Needs:
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
        skeleton_bytes=survey.skeleton_bytes,
        checkpoint_bytes=survey.checkpoint_bytes,
        weights_here=survey.weights_here,
        kv_bytes_per_position=survey.rows.kv_bytes_per_position,
        kv_bytes_per_row=survey.rows.kv_bytes_per_row,
        remarks=survey.remarks,
    )


def budget_fit(survey: ModelSizes, config: Config, available_bytes: int, device_bytes: int = 0) -> Fit:
    """Raises BudgetError only for a budget that no machine could make work (below one expert). `device_bytes`: what
    the configured device has, 0 if that is not known."""
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


def process_bytes(config: Config, sizes: ModelSizes) -> int:
    """What the supervisor and the stages of its engines take besides weights, budgets and caches.

    The predictor counts as it is once its histories are full: it grows for the first thousand requests.
    """
    engines, stages = len(config.devices), len(stage_plans(config))
    with_torch = engines * (2 if config.spare_compute else 1)  # of each engine, compute and its spare import it
    others = engines * (stages - 1) + 1  # the supervisor
    return with_torch * WITH_TORCH_BYTES + others * WITHOUT_TORCH_BYTES + engines * predictor_bytes(config, sizes)
