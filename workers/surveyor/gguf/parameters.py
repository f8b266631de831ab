"""Stored tensors of every parameter of the model, by transformers' own loader of GGUF files."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from ....errors import CheckpointError
from ...checkpoint.gguf.container import Container, StoredBlocks
from ...checkpoint.gguf.description import StoredParameter

_EXPERTS_DIMENSIONS = 3
_ORIGINAL = "Use the original model's folder in safetensors format"


_GPT_OSS = {
    "gate_up_proj": (("gate", "up"), "weight", True),
    "gate_up_proj_bias": (("gate", "up"), "bias", False),
    "down_proj": (("down",), "weight", True),
    "down_proj_bias": (("down",), "bias", False),
}
"""Experts of gpt-oss, which the library looks for under names that no file has: parts, kind of tensor, transposed."""


def stored_parameters(
    model: PreTrainedModel, containers: list[Container], config: dict[str, Any]
) -> dict[str, StoredParameter]:
    """Return the stored tensors of each parameter of `model`.

    `config`: the values of its config.json. Raises CheckpointError for experts whose place is not known.
    """
    first = containers[0]
    processor = TENSOR_PROCESSORS.get(first.architecture, TensorProcessor)(config=config)
    try:
        mapping = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as error:
        what = f"is a model of architecture {first.architecture}, whose tensors are not placed here yet"
        raise CheckpointError(what, str(first.path), _ORIGINAL) from error
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {tensor.name: tensor for container in containers for tensor in container.tensors}
    found = _gpt_oss_experts(tensors, config, shapes) if config["model_type"] == "gpt_oss" else {}
    placed = {name for own in found.values() for name in own.tensors}
    others = [own for name, own in tensors.items() if name not in placed]
    experts = [own for own in others if len(own.shape) == _EXPERTS_DIMENSIONS]
    for own in others:
        name = mapping.get(own.name) or mapping.get(own.name.removesuffix(".weight"))
        if own not in experts and name is not None:
            found[name] = StoredParameter([own.name], shapes[name])
    return found | _expert_parameters(processor, mapping, experts, first, shapes)


def _gpt_oss_experts(
    tensors: dict[str, StoredBlocks], config: dict[str, Any], shapes: dict[str, list[int]]
) -> dict[str, StoredParameter]:
    """Return the experts' parameters that a file has, stored as llama.cpp's converter writes them.

    The model has the transposes, and rows of gate and up alternate.
    """
    found: dict[str, StoredParameter] = {}
    for layer in range(config["num_hidden_layers"]):
        for own, (parts, kind, transposed) in _GPT_OSS.items():
            names = [f"blk.{layer}.ffn_{part}_exps.{kind}" for part in parts]
            if all(name in tensors for name in names):
                name = f"model.layers.{layer}.mlp.experts.{own}"
                found[name] = StoredParameter(names, shapes[name], transposed, alternating=len(names) > 1)
    return found


def _expert_parameters(
    processor: TensorProcessor,
    mapping: dict[str, str],
    experts: list[StoredBlocks],
    first: Container,
    shapes: dict[str, list[int]],
) -> dict[str, StoredParameter]:
    """Let the library place matrices of one value each, and read from the result which rows come first."""
    placed: dict[str, Any] = {"tensors": {}}
    for number, own in enumerate(experts):
        marker = np.full((1, 1, 1), number, dtype=np.float32)
        try:
            processor.process(weights=marker, name=own.name, tensor_key_mapping=mapping, parsed_parameters=placed)
        except KeyError as error:
            raise _unplaced(own, first) from error
    found = {
        name: StoredParameter([experts[int(value)].name for value in tensor.flatten().tolist()], shapes[name])
        for name, tensor in placed["tensors"].items()
    }
    known = {name for own in found.values() for name in own.tensors}
    if unknown := next((own for own in experts if own.name not in known), None):
        raise _unplaced(unknown, first)
    return found


def _unplaced(own: StoredBlocks, first: Container) -> CheckpointError:
    what = f"holds experts of architecture {first.architecture} ({own.name}), which transformers does not place"
    return CheckpointError(what, str(first.path), _ORIGINAL)
