"""`expertflow plan`: will a model fit, and how fast will it be, before anything is loaded."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import tyro

from ...configs.sizes import format_size, parse_memory
from ...errors import UsageError
from ..command_line.base import DONE, FAILED, EngineCommand
from ..monitor.progress import ProgressView
from ..monitor.tables import facts_table, result_console, share_text
from ..plan.fit import DeviceFit, Fit, Needs
from ..plan.proposal import Proposal, propose
from ..plan.speed_words import bits_facts, choice_words, speed_facts


@dataclass(frozen=True, kw_only=True)
class Plan(EngineCommand):
    """Show the memory that a model needs, whether the budgets fit this machine, and the speed to expect.

    Nothing is loaded, so the model may be larger than memory. Without its weights on this machine, config.json is
    enough: for a hub id nothing else is downloaded. With its weights, kernels are timed unless they were before, and
    its files are read for a second; earlier runs here correct the forecast. With --device the sums for its memory are
    shown instead; the device need not be in this machine. Exit code 0: it fits, 1: it does not.
    """

    chooses_memory: ClassVar = True
    option_groups: ClassVar = {"Forecast": ("memory_only", "measure", "routing")}
    device_memory: str = ""
    """Total memory of the device, for example 24GB; empty: the sums are shown without a verdict."""

    memory_only: bool = False
    """Show memory alone: no kernel is timed, and no file read."""
    measure: bool = False
    """Time the kernels again."""
    routing: Annotated[Path | None, tyro.conf.arg(metavar="TRACE")] = None
    """Count missing experts by this recording (`expertflow trace`) instead of earlier runs; without either, by a folder
    `trace` in the model's folder, else by a guess."""
    json: bool = False
    """One line of JSON instead of a table."""

    def run(self) -> int:
        device_bytes = self._device_bytes()
        with ProgressView() as view:
            proposal = propose(self.engine, device_bytes, self.memory_only, self.measure, view, self.routing)
        if self.json:
            sys.stdout.write(msgspec.json.encode(proposal).decode() + "\n")
        else:
            _show(self.engine.model, proposal)
        return DONE if proposal.budgets.fits else FAILED

    def _device_bytes(self) -> int:
        if not self.device_memory:
            return 0
        if not self.engine.on_device:
            raise UsageError("is for a device, and none is given", "device_memory", "Give --device cuda as well")
        size = parse_memory(self.device_memory, "device_memory", percentage=False)
        if size.count_bytes is None:
            raise UsageError("must be bytes, not a percentage", "device_memory", "Give 24GB, or what the device has")
        if not size.count_bytes:
            raise UsageError("is 0", "device_memory", "Give 24GB, or leave it out if it is not known")
        return size.count_bytes


def _show(model: str, proposal: Proposal) -> None:
    console, needs, fit = result_console(), proposal.model, proposal.budgets
    console.print(facts_table(needs_facts(model, needs)))
    console.print()
    console.print(facts_table(fit_facts(fit)))
    if fit.device:
        console.print()
        console.print(facts_table(device_facts(fit.device)))
    if proposal.speed is not None:
        console.print()
        console.print(facts_table(speed_facts(proposal.speed)))
    if facts := bits_facts(proposal.by_bits):
        console.print()
        console.print(facts_table(facts))
    console.print()
    for remark in needs.remarks:
        console.print(remark, soft_wrap=True)
    console.print(verdict(needs, fit), soft_wrap=True)
    if words := choice_words(proposal):
        console.print(words, soft_wrap=True)


def needs_facts(model: str, needs: Needs) -> dict[str, str]:
    """Return the facts of the model for a table, label -> text."""
    kv_bytes = 1000 * needs.kv_bytes_per_position + needs.kv_bytes_per_row
    return {
        "model": f"{model} ({needs.architecture}, {needs.dtype})",
        "experts": f"{needs.layers} layers × {needs.experts}, {needs.top_k} for each token",
        "one expert": _expert_words(needs),
        "all experts": format_size(needs.experts_bytes),
        "the rest of the model": format_size(needs.skeleton_bytes),
        "KV cache of 1,000 positions": f"{format_size(kv_bytes)} at most",
        "files": _file_words(needs),
    }


def _expert_words(needs: Needs) -> str:
    sizes = " or ".join(map(format_size, needs.kind_bytes))
    if needs.stored_expert_bytes in (0, needs.expert_bytes):
        return sizes
    return f"{sizes} in a slot, {format_size(needs.stored_expert_bytes)} in the files"


def _file_words(needs: Needs) -> str:
    size = format_size(needs.checkpoint_bytes) if needs.checkpoint_bytes else "not known"
    return size if needs.weights_here else f"{size} (not on this machine: all numbers are from config.json)"


def fit_facts(fit: Fit) -> dict[str, str]:
    """Return the budgets for a table, label -> text."""
    slots = f"{fit.slots:,} slots, {share_text(fit.slots_share)} of the experts"
    facts = {"expert slots": f"{format_size(fit.slots_bytes)} ({slots})", "host store": format_size(fit.host_bytes)}
    if fit.device is None:
        facts["KV caches"] = format_size(fit.kv_bytes)
        facts["the rest of the model"] = format_size(fit.skeleton_bytes)
    else:
        facts["expert slots"] = f"{slots}, on the device"
    return {
        **facts,
        "processes": f"{format_size(fit.process_bytes)} at most",
        "in all": format_size(fit.total_bytes),
        "available": format_size(fit.available_bytes),
    }


def device_facts(fit: DeviceFit) -> dict[str, str]:
    """Return what takes the memory of the device for a table, label -> text."""
    estimated = ("working memory", "CUDA's context")
    parts = {
        name: format_size(size) + (" (estimated)" if name in estimated else "") for name, size in fit.parts.items()
    }
    has = format_size(fit.memory_bytes) if fit.memory_bytes else "not known (--device-memory)"
    title = f"on each of {fit.name}" if "," in fit.name else f"on {fit.name}"
    return {title: "", **parts, "in all there": format_size(fit.total_bytes), "it has": has}


def verdict(needs: Needs, fit: Fit) -> str:
    """Return a sentence: whether it fits, and the budget that would."""
    if fit.device:
        return device_verdict(fit, fit.device)
    slot, least = format_size(needs.slot_bytes), format_size(fit.smallest_bytes)
    smallest = f"The smallest that works is one slot ({slot}), {least} in all."
    if fit.fits:
        return f"It fits. {smallest}"
    missing = f"It does not fit: {format_size(fit.total_bytes - fit.available_bytes)} too much."
    if not fit.largest_slots:
        return f"{missing} {smallest}"
    return f"{missing} --expert-memory {math.ceil(fit.largest_slots_bytes / 1000)}KB would. {smallest}"


def device_verdict(fit: Fit, device: DeviceFit) -> str:
    """Return the same sentence for an engine whose slots are in the memory of a device."""
    least = f"The least that works on {device.name} is one slot, {format_size(device.smallest_bytes)} in all there."
    if fit.total_bytes > fit.available_bytes:
        missing = format_size(fit.total_bytes - fit.available_bytes)
        return (
            f"It does not fit this machine's own memory: {missing} too much. Use --tier disk with less --host-memory."
        )
    if not device.memory_bytes:
        return (
            f"It fits this machine's own memory, and takes {format_size(device.total_bytes)} of {device.name}. {least}"
        )
    if device.fits:
        return f"It fits. {least}"
    missing = f"It does not fit {device.name}: {format_size(device.total_bytes - device.memory_bytes)} too much."
    if not device.largest_slots:
        return f"{missing} {least}"
    return f"{missing} --expert-memory {math.ceil(device.largest_slots_bytes / 1000)}KB would. {least}"
