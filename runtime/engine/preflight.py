"""What can be told of a configuration before any process is started: within milliseconds, without torch."""

from __future__ import annotations

from collections.abc import Sequence
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
from .device_check import require_device

UNKNOWN = 2**63
"""A vocabulary or a context that no prompt exceeds."""


def check_before_start(config: Config) -> None:
    """Check limits of the system, device, model folder and named files. A hub id is left to the survey.

    Raises EngineError, UsageError or CheckpointError, as the engine would after its processes have started.
    """
    require_open_files(ENGINE_FILES, "an engine")
    require_device(config)
    _require_files(config)
    folder = local_folder(config.model)
    if folder is not None:
        read_config(folder)
        _require_predictor(config, folder)


def require_config(config: Any) -> None:
    """Raise UsageError for what is no configuration, such as the name of a model."""
    if not isinstance(config, Config):
        what = f"must be a Config, not {type(config).__name__}"
        raise UsageError(what, "config", 'Make one: Config.load("cpu-disk", model=…)')


def impossible_prompts(prompts: Sequence[Prompt], model: str) -> list[ExpertFlowError]:
    """Return why each prompt cannot run on this model; empty if one of them can, or if that is not known before.

    Ids are compared with the largest vocabulary that config.json names; texts need a tokenizer.
    """
    folder = local_folder(model)
    if folder is None or not prompts:
        return []
    codec, vocabulary = TextCodec(str(folder)), _vocabulary(read_config(folder))
    errors = [_error_of(prompt, codec, vocabulary) for prompt in prompts]
    found = [error for error in errors if error is not None]
    return found if len(found) == len(errors) else []


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
    known = [size for size in nested if size != UNKNOWN] + ([own] if isinstance(own, int) else [])
    return max(known, default=UNKNOWN)


def _require_files(config: Config) -> None:
    asked = {
        "predictor_file": config.predictor in ("auto", "path", "paper"),
        "gates_file": config.hints == "gates",
        "oracle_routes": config.predictor == "oracle",
    }
    for name, used in asked.items():
        given = getattr(config, name)
        if given and used and not Path(given).exists():
            raise UsageError(f"names {given}, which does not exist", name, "Name what is there")


def _require_predictor(config: Config, folder: Path) -> None:
    from ...workers.predictor.base.model_shape import ModelShape
    from ...workers.predictor.registry import predictor_file

    if config.predictor in ("path", "paper"):
        predictor_file(config, ModelShape(layers=0, experts=0, top_k=0, folder=str(folder)))
