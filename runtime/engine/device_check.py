"""Whether the configured device can be used here, asked before anything is started: torch is not imported for it."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

from ...configs.schema import Config
from ...errors import UsageError


def require_device(config: Config) -> None:
    """Raises UsageError if several are named, or the device is a GPU and the installed torch is built without CUDA.

    Whether there is such a GPU, and how much of its memory is free, only compute can tell.
    """
    if len(config.devices) > 1:
        what = f"has one device, not {len(config.devices)} ({config.device})"
        raise UsageError(what, "an engine", "Start an EngineGroup, which makes one engine of each device")
    if config.device.startswith("cuda") and not cuda_version():
        remedy = "Install a CUDA build of torch, or use device = cpu"
        raise UsageError("the installed torch is built without CUDA", f"device {config.device}", remedy)


def cuda_version() -> str:
    """What torch was built for; empty for none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    return runpy.run_path(str(Path(spec.origin).parent / "version.py")).get("cuda") or ""
