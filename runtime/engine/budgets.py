"""Budgets in bytes and slots for a checkpoint; budgets that cannot fit are refused with the numbers (I5).

The memory for experts may be chosen (`expert_memory = auto`). More slots never slow a model down, and no number of
slots changes a result, so only room decides.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from ...configs.schema import AUTO, Config
from ...configs.sizes import format_size, parse_size
from ...errors import BudgetError
from ...ipc.shared.available import available_bytes
from ...ipc.shared.slot_references import REFERENCE_BYTES
from ...workers.checkpoint.resolve import local_folder
from ...workers.checkpoint.stored_weights import stored_bytes_here
from ...workers.checkpoint.survey import ModelSizes
from ...workers.kernels.library import usable_variants
from ...workers.packed.choice import DEQUANTISED, PackingChoice

DOTS = "_dots"
"""End of the names of variants that multiply packed experts without unpacking them."""
MARGIN = 0.1
"""Share of the available memory that is left for the page cache and for other programs."""
SHARE_WITHOUT_CHOICE = "25%"
"""For a device, whose memory is not known before the start, and for a host store, which holds every expert already."""
STARTED_BYTES = 150 * 10**6
"""Memory that processes take after the survey, when compute and the others have been started already."""


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
    slot_bytes = REFERENCE_BYTES if config.link == "dma" else survey.stride_bytes
    budgets = Budgets(slots, slots * slot_bytes, host, kv, survey.loaded_skeleton_bytes, config.on_device)
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


class MemoryChoice(NamedTuple):
    """The memory that was chosen for experts, and why."""

    slots: int
    expert_memory: str
    reason: str


def settle_memory(config: Config, sizes: ModelSizes, free_bytes: int, process_bytes: int) -> tuple[Config, str]:
    """Return the configuration with a size for the experts, and why it was chosen; empty if none had to be.

    Raises BudgetError with the numbers if not even one slot fits.
    """
    if config.expert_memory != AUTO:
        return config, ""
    if config.on_device or config.tier == "host":
        return structs.replace(config, expert_memory=SHARE_WITHOUT_CHOICE), ""
    choice = choose_memory(config, sizes, free_bytes, process_bytes)
    return structs.replace(config, expert_memory=choice.expert_memory), choice.reason


def choose_memory(config: Config, sizes: ModelSizes, free_bytes: int, process_bytes: int) -> MemoryChoice:
    """Return the most slots that leave a margin of the memory beside skeleton, KV caches and processes."""
    others = sizes.loaded_skeleton_bytes + parse_size(config.kv_memory, "kv_memory").of(free_bytes) + process_bytes
    room = int(free_bytes * (1 - MARGIN)) - others
    slots = min(room // sizes.stride_bytes, sizes.expert_count)
    if slots < 1:
        raise _no_room(others + sizes.stride_bytes, free_bytes)
    size = format_size(slots * sizes.stride_bytes)
    if slots == sizes.expert_count:
        reason = f"{size}: all {slots:,} experts fit in {format_size(free_bytes)} available"
        return MemoryChoice(slots, "100%", reason)
    share = f"{100 * slots / sizes.expert_count:.0f} %"
    what = f"{slots:,} of {sizes.expert_count:,} experts ({share})"
    rest = f"{format_size(free_bytes)} available less {format_size(others)} for all else and a margin"
    return MemoryChoice(slots, f"{slots * sizes.stride_bytes}B", f"{size}: {what}, {rest}")


def packing_choice(config: Config) -> PackingChoice:
    """Return the form of quantised experts: `auto` packs only where this CPU has kernels for packed experts."""
    has_kernels = any(name.endswith(DOTS) for name in usable_variants())
    if config.experts_in == "auto" and (config.on_device or not has_kernels):
        return DEQUANTISED
    return PackingChoice(config.experts_in)


def is_resident(config: Config) -> bool:
    """Return whether every expert will have a slot; with `auto` an estimate by the files, as there is no survey yet."""
    if config.expert_memory != AUTO:
        return parse_size(config.expert_memory, "expert_memory").share == 1
    folder = local_folder(config.model) if config.model else None
    if folder is None or config.on_device or config.tier == "host":
        return False
    stored = stored_bytes_here(folder)
    free = available_bytes()
    others = parse_size(config.kv_memory, "kv_memory").of(free) + 10 * STARTED_BYTES
    return stored + others < free * (1 - MARGIN)


def _no_room(needed_bytes: int, free_bytes: int) -> BudgetError:
    return BudgetError(
        f"a single expert slot, and all else, takes {format_size(needed_bytes)}, but a margin of {100 * MARGIN:.0f} % "
        f"of the {format_size(free_bytes)} available is to stay free",
        "expert_memory",
        "Free memory, lower kv_memory, or give expert_memory yourself",
    )
