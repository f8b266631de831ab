"""Everyone who is compared."""

from __future__ import annotations

from ..models import model_r
from .accelerate_disk import AccelerateDisk
from .kind import Contender, Missing
from .llama_cpp import LlamaCpp
from .vllm_cpu import VllmCpu

OFFLOADING: tuple[type[Contender], ...] = (LlamaCpp, AccelerateDisk)
"""Those that run a model larger than their memory, ours aside."""


def prepare_all() -> dict[str, str]:
    """Packages, builds and converted weights of all contenders, first; who is missing, and why."""
    missing = {}
    for contender in (*OFFLOADING, VllmCpu):
        try:
            contender().prepare(model_r())
        except Missing as reason:
            missing[contender.name] = str(reason)
    return missing
