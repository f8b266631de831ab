"""Checks of a configuration before any process is started: within milliseconds, without torch."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...configs.schema import Config
from ...errors import ExpertFlowError, UsageError
from ...ipc.shared.open_files import ENGINE_FILES, require_open_files
from ...workers.checkpoint.config_file import read_config
from ...workers.checkpoint.resolve import local_folder
from ...workers.scheduler.validation import prompt_error
from ..client.options import Prompt
from ..text.codec import TextCodec

UNKNOWN = 2**63
"""Size of a vocabulary or a context that is not known: no prompt exceeds it."""


def check_before_start(config: Config) -> None:
    """Check limits of the system, device, model folder and named files; the survey checks a hub id.

    Raises the EngineError, UsageError or CheckpointError that the engine would raise after its processes have started.
    """
    require_open_files(ENGINE_FILES, "an engine")
    require_device(config)
    check_named_files(config)


def check_named_files(config: Config) -> None:
    """Check the model folder and the files that the configuration names, as `check_before_start` does."""
    require_files(config)
    folder = local_folder(config.model)
    if folder is not None:
        read_config(folder)
        _require_predictor(config, folder)


def require_config(config: Any) -> None:
    """Raise UsageError unless `config` is a `Config`; the name of a model is none."""
    if not isinstance(config, Config):
        what = f"must be a Config, not {type(config).__name__}"
        raise UsageError(what, "config", 'Make one: Config.load("cpu-disk", model=…)')


def require_device(config: Config) -> None:
    """Raise UsageError for several devices, or for a GPU when the installed torch is built without CUDA.

    Only compute can check whether the GPU exists and how much of its memory is free.
    """
    if len(config.devices) > 1:
        what = f"has one device, not {len(config.devices)} ({config.device})"
        raise UsageError(what, "an engine", "Start an EngineGroup, which makes one engine of each device")
    if config.device.startswith("cuda") and not cuda_version():
        remedy = "Install a CUDA build of torch, or use device = cpu"
        raise UsageError("the installed torch is built without CUDA", f"device = {config.device}", remedy)


def cuda_version() -> str:
    """Return the CUDA version that torch is built for, without importing torch; empty for none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    return runpy.run_path(str(Path(spec.origin).parent / "version.py")).get("cuda") or ""


def impossible_prompts(prompts: Sequence[Prompt], model: str) -> list[ExpertFlowError]:
    """Return the reason for each prompt that it cannot run; empty if one can run, or if that is not known before start.

    Ids are compared with the largest vocabulary that config.json names; texts need a tokenizer.
    """
    folder = local_folder(model)
    if folder is None or not prompts:
        return []
    codec, vocabulary = TextCodec(str(folder)), _vocabulary(read_config(folder))
    errors = [_error_of(prompt, codec, vocabulary) for prompt in prompts]
    refused = [error for error in errors if error is not None]
    return refused if len(refused) == len(errors) else []


def _error_of(prompt: Prompt, codec: TextCodec, vocabulary: int) -> ExpertFlowError | None:
    if isinstance(prompt, str):
        return None if codec.available else codec.missing()
    if not isinstance(prompt, Sequence):
        return None
    facts = prompt_error(list(prompt), vocabulary, UNKNOWN)
    return facts.to_error() if facts else None


def _vocabulary(config: dict[str, Any]) -> int:
    """Return the largest `vocab_size` of the configuration and of those nested in it."""
    nested = [_vocabulary(part) for part in config.values() if isinstance(part, dict)]
    own = config.get("vocab_size")
    sizes = [size for size in nested if size != UNKNOWN] + ([own] if isinstance(own, int) else [])
    return max(sizes, default=UNKNOWN)


def require_files(config: Config) -> None:
    """Raise UsageError if a file is missing that the configuration names and uses."""
    used_by_config = {
        "predictor_file": config.predictor in ("auto", "path", "paper"),
        "gates_file": config.hints == "gates",
        "oracle_routes": config.predictor == "oracle",
    }
    for name, is_used in used_by_config.items():
        file = getattr(config, name)
        if file and is_used and not Path(file).exists():
            raise UsageError(f"names {file}, which does not exist", name, "Name an existing file")


def _require_predictor(config: Config, folder: Path) -> None:
    from ...workers.predictor.base.model_shape import ModelShape
    from ...workers.predictor.registry import predictor_file

    if config.predictor in ("path", "paper"):
        predictor_file(config, ModelShape(layers=0, experts=0, top_k=0, folder=str(folder)))
