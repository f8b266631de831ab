"""The study as one command: options, the parts in order, and their result."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....errors import UsageError
from .ctr.anchors import MEANS, SPLITS, measure_anchor
from .ctr.fields import field_table
from .ctr.models import MIXTURES, NAMES
from .ctr.stream import run_ctr_stream
from .ctr.training import CtrSchedule
from .item_states import item_states, open_encoder
from .memory import measure_apart
from .memory import names as memory_names
from .parts import PartStore
from .popularity import run_popularity_stream
from .readers.folder import read_default, read_folder
from .readers.rows import BadRows, Ratings
from .served import serve_grown, stream_results
from .speed import BATCHES, Rate, measure_encoding, measure_pairs, measure_ranking
from .stream import StreamSettings
from .synthetic import make_ratings
from .xsmoe.training import Schedule

DEFAULT_OUT = Path("build/studies/recommend")
GROWN_EXPERTS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a run: the whole study, or its quick form."""

    windows: int
    schedule: Schedule
    ctr: CtrSchedule
    baselines: tuple[str, ...]
    mixtures: tuple[str, ...]
    """More of them, for rates and memory alone."""
    batches: tuple[int, ...]
    memory_batches: tuple[int, ...]
    least_seconds: float
    shares: tuple[int, ...]
    widening: int
    steps: int


FULL = Scale(
    windows=10,
    schedule=Schedule(),
    ctr=CtrSchedule(),
    baselines=NAMES,
    mixtures=MIXTURES,
    batches=BATCHES,
    memory_batches=(10_000,),
    least_seconds=0.1,
    shares=(25, 50, 75),
    widening=32,
    steps=200,
)
QUICK = Scale(
    windows=4,
    schedule=Schedule(epochs=2, validate_from=1),
    ctr=CtrSchedule(epochs=1),
    baselines=("DeepFM", "DCN-V2 mix 4"),
    mixtures=(),
    batches=(1, 100),
    memory_batches=(),
    least_seconds=0.01,
    shares=(50,),
    widening=8,
    steps=6,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the study."""
    parser.add_argument("--quick", action="store_true", help="a small made data set, in seconds: checks, no figures")
    parser.add_argument("--data", type=Path, help="folder of MovieLens-20M, -1M, -100K or Amazon reviews 2018 or 2023")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of results; a stopped run goes on in it")
    parser.add_argument("--seeds", default="", help="numbers with commas (42,43,44; --quick: 42)")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and count them")


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Run what is not done yet, and return all results as plain data.

    Raises DataError for a bad row, DownloadError, UsageError for an option or a folder of other results.
    """
    scale, bad = QUICK if arguments.quick else FULL, BadRows(arguments.skip_bad)
    seeds = parse_seeds(arguments.seeds or ("42" if arguments.quick else "42,43,44"))
    ratings = open_ratings(arguments, bad)
    settings = {"data": ratings.name, "rows": len(ratings), "quick": bool(arguments.quick)}
    store = PartStore(arguments.out, settings)
    states = item_states(ratings.facts, open_encoder())
    return {
        **settings,
        "users": len(ratings.user_names),
        "items": len(ratings.item_names),
        "skipped": bad.table(),
        "seeds": seeds,
        "threads": torch.get_num_threads(),
        "streams": _streams(store, ratings, states, scale, seeds),
        "speed": _speed(store, ratings, states.shape[3], scale),
        "served": _served(store, ratings, states, scale, seeds[0]),
        "baselines": _baselines(store, ratings, scale, seeds),
        "memory": [
            store.get(f"memory-{name.replace(' ', '-')}-{batch}", lambda name=name, batch=batch: measure_apart(
                name, batch, states.shape[3], len(ratings.item_names)))
            for batch in scale.memory_batches for name in memory_names()
        ],
        "anchors": _anchors(store, ratings, scale, seeds),
    }  # fmt: skip


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in `text`, numbers with commas. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"cannot read '{text}'", "seeds", "Write for example 42,43,44") from error


def open_ratings(arguments: argparse.Namespace, bad: BadRows) -> Ratings:
    """Return the data of --data; else the made set if --quick, MovieLens-100K if not."""
    if arguments.data is not None:
        return read_folder(arguments.data, bad)
    return make_ratings() if arguments.quick else read_default(bad)


def _anchors(store: PartStore, ratings: Ratings, scale: Scale, seeds: list[int]) -> list[Any]:
    return [
        store.get(
            f"anchor-{split}-{name.replace(' ', '-')}-{seed}",
            lambda name=name, split=split, seed=seed: measure_anchor(ratings, name, split, seed, scale.ctr),
        )
        for split in SPLITS
        for name in (MEANS, *scale.baselines)
        for seed in seeds
    ]


def _settings(scale: Scale, seed: int, threshold: float) -> StreamSettings:
    return StreamSettings(seed=seed, windows=scale.windows, schedule=scale.schedule, threshold=threshold)


def _streams(store: PartStore, ratings: Ratings, states: torch.Tensor, scale: Scale, seeds: list[int]) -> list[Any]:
    """Return the stream as published, and without pruning, so that all layers grow to the same number of experts."""
    return [
        {"seed": seed, "threshold": threshold, "windows": store.get(
            f"stream-{name}-{seed}", lambda seed=seed, threshold=threshold, name=name: stream_results(
                ratings, states, _settings(scale, seed, threshold), store.folder / f"{name}-{seed}.safetensors",
                GROWN_EXPERTS))}
        for name, threshold in (("pruned", 0.1), ("unpruned", 0.0)) for seed in seeds
    ]  # fmt: skip


def _baselines(store: PartStore, ratings: Ratings, scale: Scale, seeds: list[int]) -> list[Any]:
    return [
        {"model": name, "seed": seed, "windows": store.get(
            f"ctr-{name.replace(' ', '-')}-{seed}",
            lambda name=name, seed=seed: list(run_ctr_stream(name, ratings, _settings(scale, seed, 0.1), scale.ctr)))}
        for name in scale.baselines for seed in seeds
    ] + [
        {"model": "popularity", "seed": seeds[0], "windows": store.get(
            "popularity", lambda: list(run_popularity_stream(ratings, _settings(scale, seeds[0], 0.1))))}
    ]  # fmt: skip


def _speed(store: PartStore, ratings: Ratings, width: int, scale: Scale) -> list[Any]:
    items, least, batches = len(ratings.item_names), scale.least_seconds, scale.batches
    table = field_table(ratings, with_history=True)
    kinds: dict[str, Callable[[], list[Rate]]] = {
        "items": lambda: measure_encoding(width, GROWN_EXPERTS, batches, least),
        "users": lambda: measure_ranking(width, GROWN_EXPERTS, items, batches, least),
    }
    for name in scale.baselines + scale.mixtures:
        kinds[name.replace(" ", "-")] = lambda name=name: measure_pairs(table, name, items, batches, least)
    return [rate for kind, measure in kinds.items() for rate in store.get(f"speed-{kind}", measure)]


def _served(store: PartStore, ratings: Ratings, states: torch.Tensor, scale: Scale, seed: int) -> list[Any]:
    weights = store.folder / f"unpruned-{seed}.safetensors"
    return [
        store.get(
            f"served-{seed}-top{top_k}-{share}",
            lambda top_k=top_k, share=share: serve_grown(
                ratings, states, weights, scale.windows, scale.steps, scale.widening, top_k, share / 100
            ),
        )
        for top_k in (1, 2)
        for share in scale.shares
    ]
