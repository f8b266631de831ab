"""Writes the folder that describes a GGUF model (checkpoint/gguf/description.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...checkpoint.gguf.container import Container
from ...checkpoint.gguf.description import FILE, Description, stamps_of
from ...checkpoint.gguf.model_files import read_containers
from ...model.architecture import build_on_meta, expert_names, experts_modules, load_config
from .configuration import config_values
from .linears import whole_linears
from .parameters import stored_parameters
from .tokenizer_files import write_tokenizer


def write_description(folder: Path, files: list[Path]) -> None:
    """Describe the model in `files`, all parts of it, in an empty folder.

    Raises CheckpointError for a model that cannot be run; OSError if a file cannot be read or written.
    """
    stamps = stamps_of(files)
    containers = read_containers(files)
    values = config_values(containers)
    _write(folder / "config.json", values)
    _write(folder / "generation_config.json", _generation(containers[0]))
    write_tokenizer(folder, containers[0])
    config = load_config(folder, values)
    model = build_on_meta(config, torch.float32)
    experts = [name for path, module in experts_modules(model) for name in expert_names(path, module)]
    parameters = stored_parameters(model, containers, values)
    outside = {name: own for name, own in parameters.items() if name not in experts}
    described = Description(
        architecture=containers[0].architecture,
        files=[str(file) for file in files],
        stamps=stamps,
        parameters=parameters,
        experts=experts,
        linears=whole_linears(model, outside, containers, values),
    )
    (folder / FILE).write_bytes(msgspec.json.encode(described))


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")


def _generation(first: Container) -> dict[str, Any]:
    """Return the ends of text that the metadata state, as a generation_config.json has them."""
    ends = [first.number(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stated = {"bos_token_id": first.number("tokenizer.ggml.bos_token_id")}
    found = list(dict.fromkeys(end for end in ends if end is not None))
    return {name: value for name, value in stated.items() if value is not None} | {"eos_token_id": found}
