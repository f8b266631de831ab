"""`expertflow plan`: what a model needs and whether it fits, before anything is loaded."""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...configs.sizes import format_size
from ...ipc.available import available_bytes
from ...ipc.messages import Progress
from ...workers.checkpoint.survey import ModelSizes
from ..fit import Fit, Needs, budget_fit, model_needs
from ..progress import ProgressView
from ..surveying import run_sizes
from ..tables import facts_table, result_console, share_text
from .base import DONE, FAILED, EngineCommand


@dataclass(frozen=True, kw_only=True)
class Plan(EngineCommand):
    """Say what a model needs and whether the given budgets fit this machine, from the headers of its files alone.

    Nothing is loaded, so the model may be larger than memory. Where its weights are not on this machine, config.json is
    enough: of a hub id nothing else is downloaded. Exit code 0: it fits, 1: it does not.
    """

    json: bool = False
    """One line of JSON instead of a table."""

    def run(self) -> int:
        sizes = self._sizes()
        needs, fit = model_needs(sizes), budget_fit(sizes, self.engine, available_bytes())
        if self.json:
            sys.stdout.write(msgspec.json.encode({"model": needs, "budgets": fit}).decode() + "\n")
        else:
            _show(self.engine.model, needs, fit)
        return DONE if fit.fits else FAILED

    def _sizes(self) -> ModelSizes:
        with ProgressView() as view, tempfile.TemporaryDirectory(prefix="plan-expertflow-") as folder:
            view(Progress("plan", "sizing the model up", 0, 1))
            return run_sizes(self.engine, Path(folder, "sizes"))


def _show(model: str, needs: Needs, fit: Fit) -> None:
    console = result_console()
    console.print(facts_table(needs_facts(model, needs)))
    console.print()
    console.print(facts_table(fit_facts(fit)))
    console.print()
    console.print(verdict(needs, fit), soft_wrap=True)


def needs_facts(model: str, needs: Needs) -> dict[str, str]:
    """The model, in words."""
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
    words = " or ".join(map(format_size, needs.kind_bytes))
    if needs.stored_expert_bytes in (0, needs.expert_bytes):
        return words
    return f"{words} in a slot, {format_size(needs.stored_expert_bytes)} in the files"


def _file_words(needs: Needs) -> str:
    size = format_size(needs.checkpoint_bytes) if needs.checkpoint_bytes else "not known"
    return size if needs.weights_here else f"{size} (not on this machine: all numbers are from config.json)"


def fit_facts(fit: Fit) -> dict[str, str]:
    """The budgets, in words."""
    slots = f"{fit.slots:,} slots, {share_text(fit.slots_share)} of the experts"
    return {
        "expert slots": f"{format_size(fit.slots_bytes)} ({slots})",
        "host store": format_size(fit.host_bytes),
        "KV caches": format_size(fit.kv_bytes),
        "the rest of the model": format_size(fit.skeleton_bytes),
        "processes": f"{format_size(fit.process_bytes)} at most",
        "in all": format_size(fit.total_bytes),
        "available": format_size(fit.available_bytes),
    }


def verdict(needs: Needs, fit: Fit) -> str:
    """Whether it fits, and what would."""
    one, least = format_size(needs.slot_bytes), format_size(fit.smallest_bytes)
    smallest = f"The smallest that works is one slot ({one}), {least} in all."
    if fit.fits:
        return f"It fits. {smallest}"
    missing = f"It does not fit: {format_size(fit.total_bytes - fit.available_bytes)} too much."
    if not fit.largest_slots:
        return f"{missing} {smallest}"
    return f"{missing} --expert-memory {math.ceil(fit.largest_slots_bytes / 1000)}KB would. {smallest}"
