"""The ten-window protocol with XSMoE: train on a window, test on the next, prune, expand, go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from .ranking.places import Quality, candidates, places, quality
from .readers.rows import Ratings
from .windows import Questions, Seen, Window, cut_windows, next_questions, training_sequences, validation_questions
from .xsmoe.growth import THRESHOLD, expand, prune
from .xsmoe.model import Recommender, Sizes
from .xsmoe.side import DENSE, ActiveExperts
from .xsmoe.training import Schedule, Trained, train_window

ACTIVE = (1, 2, 4, 8)
"""Experts that run, in the extension that is ours; `dense` beside them is the paper's."""
USERS_A_BATCH = 512


class WindowResult(msgspec.Struct, frozen=True, kw_only=True):
    """Test of one window on the next."""

    window: int
    experts: list[int]
    """Of each side layer, when the window was trained."""
    pruned: list[int | None]
    """Number of the expert that each side layer lost after it."""
    epochs: int
    best_epoch: int
    absorb_seconds: float
    """Time to train on the window, validation included."""
    absorb_processor_seconds: float
    quality: dict[str, Quality]
    """"dense", "k=1", …: raw weights; "k=1 renormalised", …"""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of a run. `seed` 42 is the paper's."""

    seed: int = 42
    windows: int = 10
    least: int = 5
    """Interactions that a user needs within a window."""
    threshold: float = THRESHOLD
    bottleneck: int = 64
    schedule: Schedule = field(default_factory=Schedule)


def choices() -> dict[str, ActiveExperts]:
    """Return the choices of active experts by their names in results."""
    named = {"dense": DENSE}
    for count in ACTIVE:
        named[f"k={count}"] = ActiveExperts(count)
        named[f"k={count} renormalised"] = ActiveExperts(count, renormalise=True)
    return named


def run_stream(
    ratings: Ratings, states: Tensor, settings: StreamSettings
) -> Iterator[tuple[WindowResult, Recommender]]:
    """Yield the result of each window with the model that it was tested with (valid until the next is asked for).

    `states` is float [modalities, 1 + layers, items, width].
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    windows = cut_windows(ratings, settings.windows, settings.least)
    sizes = Sizes(width=states.shape[3], modalities=states.shape[0], side_layers=states.shape[1] - 1)
    model = Recommender(replace(sizes, bottleneck=settings.bottleneck))
    seen = Seen(len(ratings.user_names), len(ratings.item_names))
    for number, window in enumerate(windows[:-1]):
        trained = _train(model, states, window, settings.schedule, generator)
        seen.add(window)
        asked = next_questions(windows[number + 1])
        tested = {name: measure(model, states, asked, seen, active) for name, active in choices().items()}
        grown = copy.deepcopy(model)
        pruned = [prune(*pair, settings.threshold) for pair in zip(grown.side_layers(), trained.shares, strict=True)]
        yield _result(number, model, trained, pruned, tested), model
        model = grown
        for layer in model.side_layers():
            expand(layer)


def _result(
    number: int, model: Recommender, trained: Trained, pruned: list[int | None], tested: dict[str, Quality]
) -> WindowResult:
    return WindowResult(
        window=number,
        experts=[len(layer.experts) for layer in model.side_layers()],
        pruned=pruned,
        epochs=trained.epochs,
        best_epoch=trained.best_epoch,
        absorb_seconds=trained.seconds,
        absorb_processor_seconds=trained.processor_seconds,
        quality=tested,
    )


def _train(
    model: Recommender, states: Tensor, window: Window, schedule: Schedule, generator: torch.Generator
) -> Trained:
    sequences = torch.from_numpy(training_sequences(window))
    items = torch.from_numpy(window.items[: window.trained_rows])
    asked = validation_questions(window)
    shown = np.unique(window.items[window.trained_rows :])
    return train_window(model, states, sequences, items, _validator(states, asked, shown), schedule, generator)


def _validator(states: Tensor, asked: Questions, shown: np.ndarray) -> Callable[[Recommender], float]:
    """Return NDCG@10 on these questions; candidates are only the items `shown`, int64, of the validation part."""
    hidden = np.ones((len(asked), states.shape[2]), dtype=bool)
    hidden[:, shown] = False

    def validate(model: Recommender) -> float:
        scores = score_all(model, states, asked, DENSE)
        return quality(places(scores, asked.targets, hidden), candidates(hidden, asked.targets)).ndcg10

    return validate


def measure(model: Recommender, states: Tensor, asked: Questions, seen: Seen, active: ActiveExperts) -> Quality:
    """Return the quality on these questions, by the places of the targets among all items known so far."""
    hidden = hidden_items(asked, seen, states.shape[2])
    scores = score_all(model, states, asked, active)
    return quality(places(scores, asked.targets, hidden), candidates(hidden, asked.targets))


def hidden_items(asked: Questions, seen: Seen, items: int) -> np.ndarray:
    """Return bool [n, items]: what the user had in earlier windows, and items above the largest of these users."""
    hidden = seen.of(asked.users).copy()
    largest = int(max(asked.targets.max(), asked.histories.max())) if len(asked) else 0
    hidden[:, np.arange(items) > largest] = True
    return hidden


@torch.no_grad()
def score_all(model: Recommender, states: Tensor, asked: Questions, active: ActiveExperts) -> np.ndarray:
    """Return float32 [n, items]: the score of every item for every question."""
    model.eval()
    vectors = model.encode_items(states, active)
    parts = torch.from_numpy(asked.histories).split(USERS_A_BATCH)
    scored = [model.encode_users(vectors, part) @ vectors.T for part in parts]
    return torch.cat(scored).numpy() if scored else np.zeros((0, states.shape[2]), dtype=np.float32)
