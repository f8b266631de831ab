"""Recognises checkpoints that are no complete model: adapters, LoRA tensors left inside, prefixed names, no head.

Without torch. Names of adapters are those that PEFT writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .config_values import shortened
from .headers import indexed_tensors, read_headers, weights_entry

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_TENSOR = re.compile(
    r"(^|[._])(lora_(A|B|E|magnitude_vector|embedding_[AB])|base_layer|modules_to_save|ia3_l)\b"
)
_VISION = re.compile(r"(^|[._])(visual|vision|image|vit|siglip|resampler|mm_projector|multi_modal)")
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForRewardModel")
_MERGE = (
    "Merge it into its base model: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(FOLDER)"
)


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for a folder that holds an adapter (PEFT), alone or beside whole weights."""
    alone = not (folder / "config.json").is_file()
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    if not alone and not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        return  # a leftover of a merge
    stated = _adapter_config(folder / ADAPTER_CONFIG)
    method, base = stated.get("peft_type"), stated.get("base_model_name_or_path")
    of = f" of {shortened(base)}" if base else ""
    what = f"is an adapter ({shortened(method)}){of}, not a whole model"
    beside = ", or take adapter_config.json and its weights away to run the model without it"
    raise CheckpointError(what, str(folder), _MERGE + ("" if alone else beside))


def _adapter_config(file: Path) -> dict[str, Any]:
    try:
        stated = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}


def refuse_adapter_tensors(stored: Iterable[str], wanted: Iterable[str], folder: Path) -> None:
    """Raise CheckpointError for tensors of an adapter among those of a model whose own have no such names."""
    found = next((name for name in stored if _ADAPTER_TENSOR.search(name)), None)
    if found is None or any(_ADAPTER_TENSOR.search(name) for name in wanted):
        return
    what = f"has tensors of an adapter that was never merged ({found})"
    remedy = "Merge it before it is saved (merge_and_unload of PEFT); without it the model would give other text"
    raise CheckpointError(what, str(folder), remedy)


def has_no_vision(folder: Path, config: dict[str, Any] | None = None) -> bool:
    """Return whether the weights in `folder`, or their index, are present and hold no vision part.

    `config`: the folder's config.json where it was read already.
    """
    names = _stored_names(folder, config)
    return bool(names) and not any(_VISION.search(name) for name in names)


def _stored_names(folder: Path, config: dict[str, Any] | None) -> list[str]:
    """Return names of all tensors in the set of weights that is read.

    Empty where neither its index nor its file is present, or where they cannot be read.
    """
    try:
        weights = folder / weights_entry(folder, config=config)
        return indexed_tensors(folder, config=config) or (list(read_headers([weights])) if weights.is_file() else [])
    except (CheckpointError, OSError):
        return []  # the survey raises it, with its reason


def wrapper_prefix(stored: Iterable[str], wanted: Iterable[str]) -> str:
    """Return the prefix of every tensor's name without which the names are the model's.

    Empty if there is no such prefix. `stored`, `wanted`: names in the files, and in the model.
    """
    names, model_names = list(stored), set(wanted)
    prefix = next(filter(None, (_prefix_of(name, model_names) for name in names)), "")
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _prefix_of(name: str, model_names: set[str]) -> str:
    dots = [index + 1 for index, letter in enumerate(name) if letter == "."]
    return next((name[:start] for start in dots if name[start:] in model_names), "")


def missing_error(name: str, stored: list[str], wanted: list[str], config: Any, folder: Path) -> CheckpointError:
    """Return the error, with its remedy, for the tensor `name`, which is not in the files.

    `stored`, `wanted`: names in the files, and in the model; `config`: the model's.
    """
    if prefix := wrapper_prefix(stored, wanted):
        what = f"has '{prefix}' before the name of every tensor, as a wrapper saved it"
        remedy = f"Take it away, which changes names only: python -m expertflow.workers.surveyor.strip_prefix {folder}"
        return CheckpointError(what, str(folder), remedy)
    if name in ("lm_head.weight", "output.weight", "embed_out.weight"):
        return _no_head(name, config, folder)
    return CheckpointError(
        f"tensor {name} is missing", str(folder), "The checkpoint is incomplete; download it again"
    )  # fmt: skip


def _no_head(name: str, config: Any, folder: Path) -> CheckpointError:
    stated = next(iter(getattr(config, "architectures", None) or []), "")
    if stated.endswith(_OTHER_HEADS):
        what = f"tensor {name} is missing: {stated} has another head than a language model"
        return CheckpointError(what, str(folder), "Use the language model that it was made from")
    remedy = "If its head is its embedding, set tie_word_embeddings to true in config.json; "
    remedy += "else save it with its head (AutoModelForCausalLM, not AutoModel), or download it again"
    return CheckpointError(f"tensor {name}, the head of the model, is missing", str(folder), remedy)
