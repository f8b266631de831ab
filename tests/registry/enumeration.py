"""Which architectures transformers runs through its experts interface, found in its own source."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from expertflow.workers.model.architecture import WITH_IMAGES
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_DECORATED = re.compile(r"^@use_experts_implementation", re.MULTILINE)


@cache
def modules() -> dict[str, list[str]]:
    """Modules of transformers that have experts of the interface -> the model types that live there."""
    spec = importlib.util.find_spec("transformers.models")
    folder = Path(next(iter(spec.submodule_search_locations or []))) if spec else Path()
    names = [file.parent.name for file in sorted(folder.glob("*/modeling_*.py")) if _DECORATED.search(file.read_text())]
    types = {name: [] for name in names}
    for model_type in CONFIG_MAPPING:  # names only: none is imported
        types.get(model_type_to_module_name(model_type), []).append(model_type)
    return types


def causal_types() -> list[str]:
    """Model types that transformers declares to be causal language models."""
    return [each for types in modules().values() for each in types if each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


def other_modules() -> dict[str, list[str]]:
    """Modules none of whose model types is declared a causal language model, but for types that run with images."""
    known = set(causal_types())
    others = {name: types for name, types in modules().items() if not known & set(types)}
    return {name: [each for each in types if each not in WITH_IMAGES] for name, types in others.items()}
