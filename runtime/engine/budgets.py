"""Budgets in bytes and slots for a checkpoint; budgets that cannot fit are refused with the numbers (I5)."""

from __future__ import annotations

from typing import NamedTuple

from ...configs.schema import Config
from ...configs.sizes import format_size, parse_size
from ...errors import BudgetError
from ...workers.checkpoint.survey import ModelSizes


class Budgets(NamedTuple):
    """Budgets of one engine; `host_bytes` is 0 without a host store."""

    slots: int
    slots_bytes: int
    host_bytes: int
    kv_bytes: int
    skeleton_bytes: int
    on_device: bool = False
    """Slots, KV caches and skeleton lie in the memory of a device."""

    @property
    def total_bytes(self) -> int:
        """Return the bytes of the machine's own memory."""
        return self.host_bytes if self.on_device else self.host_bytes + self.device_bytes

    @property
    def device_bytes(self) -> int:
        """Return the bytes of slots, KV caches and skeleton."""
        return self.slots_bytes + self.kv_bytes + self.skeleton_bytes


def plan_budgets(config: Config, survey: ModelSizes, available_bytes: int) -> Budgets:
    """Return the budgets of `config` for this model.

    Raises BudgetError if a budget is too small for the model, or if their sum exceeds `available_bytes`.
    """
    slots = count_slots(config.expert_memory, survey)
    if config.slot_sharing == "layer" and slots < survey.layers:
        raise _too_few_for_layers(slots, survey)
    kv = parse_size(config.kv_memory, "kv_memory").of(available_bytes)
    host = _host_bytes(config, survey)
    budgets = Budgets(slots, slots * survey.stride_bytes, host, kv, survey.skeleton_bytes, config.on_device)
    if budgets.total_bytes > available_bytes:
        raise _too_large(budgets, available_bytes)
    return budgets


def count_slots(expert_memory: str, survey: ModelSizes) -> int:
    """Return the number of slots for an amount of memory or a share of the experts; at most one an expert.

    Raises BudgetError if not even one expert fits.
    """
    size = parse_size(expert_memory, "expert_memory")
    if size.count_bytes is not None:
        slots = size.count_bytes // survey.stride_bytes
    else:
        slots = int((size.share or 0.0) * survey.expert_count + 1e-6)
    if slots < 1:
        one = format_size(survey.stride_bytes)
        raise BudgetError(
            f"{expert_memory} holds no expert: one of the {survey.expert_count} takes {one}",
            "expert_memory",
            f"Give at least {one}; fewer slots than the {survey.top_k} experts of a token will be slow",
        )
    return min(slots, survey.expert_count)


def _too_few_for_layers(slots: int, survey: ModelSizes) -> BudgetError:
    needed = format_size(survey.layers * survey.stride_bytes)
    what = f"{slots} slots for {survey.layers} MoE layers, each of which needs slots of its own"
    return BudgetError(what, "slot_sharing", f"Raise expert_memory to {needed} at least, or share slots in a pool")


def _host_bytes(config: Config, survey: ModelSizes) -> int:
    if config.tier != "host" and not config.on_device:
        return 0
    whole = survey.expert_count * survey.stride_bytes
    host = parse_size(config.host_memory, "host_memory").of(whole)
    if config.tier != "host":
        return _round_to_places(host, survey)
    if host < whole:
        raise BudgetError(
            f"holds {format_size(host)}, but all {survey.expert_count} experts take {format_size(whole)}",
            "host_memory",
            "Give at least that, or use tier = disk",
        )
    return whole


def _round_to_places(host_bytes: int, survey: ModelSizes) -> int:
    """Return the bytes of a host store between disk and device, in whole places of one expert."""
    places = min(host_bytes // survey.stride_bytes, survey.expert_count)
    if places < 1:
        one = format_size(survey.stride_bytes)
        raise BudgetError(f"{format_size(host_bytes)} holds no expert: one takes {one}", "host_memory", "Give more")
    return places * survey.stride_bytes


def _too_large(budgets: Budgets, available_bytes: int) -> BudgetError:
    parts = {
        "expert slots": budgets.slots_bytes,
        "host store": budgets.host_bytes,
        "KV caches": budgets.kv_bytes,
        "the rest of the model": budgets.skeleton_bytes,
    }
    if budgets.on_device:
        parts = {"host store": budgets.host_bytes}
    listed = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items() if size)
    return BudgetError(
        f"needs {format_size(budgets.total_bytes)} ({listed}), but only {format_size(available_bytes)} is available",
        "memory",
        "Lower expert_memory or kv_memory, or use tier = disk",
    )
