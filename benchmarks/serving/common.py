"""What the measurements of serving share: options of the model, the engine's configuration, prompts of random ids."""

from __future__ import annotations

import argparse
import random
from typing import Any

from expertflow import Config

from ..models import EXAMPLES, folder_of

MODELS = ("built-in", "r", "widened")


def add_model_options(parser: argparse.ArgumentParser, default: str = "r") -> None:
    """Add the options that say which model runs, and with which memory."""
    parser.add_argument("--model", choices=MODELS, default=default, help="r: random OLMoE of 3.3 GB")
    parser.add_argument("--expert-memory", default="100%", help="expert slots")
    parser.add_argument("--kv-memory", default="2GiB", help="budget of the KV caches")


def config_of(arguments: argparse.Namespace, **options: Any) -> Config:
    """Return the configuration of an engine for this measurement."""
    folder = EXAMPLES / "model" if arguments.model == "built-in" else folder_of(arguments.model)
    memory = {"expert_memory": arguments.expert_memory, "kv_memory": arguments.kv_memory}
    return Config.load(model=str(folder), **memory, **options)


def random_ids(vocabulary: int, count: int, seed: str) -> list[int]:
    """Return so many token ids, the same for the same seed."""
    rng = random.Random(seed)
    return [rng.randrange(3, vocabulary) for _ in range(count)]
