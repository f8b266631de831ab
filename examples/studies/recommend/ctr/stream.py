"""The baselines on the same stream and questions: each candidate is a pair that goes through the model."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import nn

from ..ranking.places import Quality, candidates, places, quality
from ..readers.rows import Ratings
from ..stream import StreamSettings, hidden_items
from ..windows import Questions, Seen, Window, cut_windows, next_questions, training_sequences, validation_questions
from ..xsmoe.model import HISTORY, NO_ITEM
from .fields import FieldTable, field_table
from .models import make_model
from .training import CtrSchedule, Pairs, score_pairs, train_pairs

NEGATIVES = 4
"""Drawn for each positive pair, uniformly from the items of the window's training part."""


class CtrWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Test of one window on the next."""

    window: int
    epochs: int
    absorb_seconds: float
    absorb_processor_seconds: float
    quality: Quality


def run_ctr_stream(name: str, ratings: Ratings, settings: StreamSettings, schedule: CtrSchedule) -> Iterator[CtrWindow]:
    """Yield the result of each window. The model is trained on from window to window, with a new optimiser in each."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    table = field_table(ratings, with_history=True)
    model = make_model(name, table)
    seen = Seen(len(ratings.user_names), len(ratings.item_names))
    windows = cut_windows(ratings, settings.windows, settings.least)
    for number, window in enumerate(windows[:-1]):
        positive = positive_pairs(window)
        asked, shown = validation_questions(window), np.unique(window.items[window.trained_rows :])
        hidden = np.ones((len(asked), len(ratings.item_names)), dtype=bool)
        hidden[:, shown] = False
        ended = train_pairs(
            model,
            table,
            lambda epoch, positive=positive: with_negatives(positive, generator),
            lambda trained, asked=asked, hidden=hidden: rank(trained, table, asked, hidden).ndcg10,
            schedule,
            generator,
        )
        seen.add(window)
        asked = next_questions(windows[number + 1])
        tested = rank(model, table, asked, hidden_items(asked, seen, len(ratings.item_names)))
        yield CtrWindow(
            window=number,
            epochs=ended.epochs,
            absorb_seconds=ended.seconds,
            absorb_processor_seconds=ended.processor_seconds,
            quality=tested,
        )


def positive_pairs(window: Window) -> Pairs:
    """Return history and next item at every position of the training sequences."""
    sequences = training_sequences(window)
    histories, targets = [], []
    for length in range(1, HISTORY + 1):
        rows = sequences[sequences[:, length] != NO_ITEM]
        history = np.full((len(rows), HISTORY), NO_ITEM)
        history[:, :length] = rows[:, :length]
        histories.append(history)
        targets.append(rows[:, length])
    items = torch.from_numpy(np.concatenate(targets))
    labels = torch.ones(len(items))
    return Pairs(torch.zeros_like(items), items, labels, torch.from_numpy(np.concatenate(histories)))


def with_negatives(positive: Pairs, generator: torch.Generator) -> Pairs:
    """Return the pairs, and NEGATIVES more for each: the same history with an item drawn from all the items here."""
    pool = positive.items.unique()
    drawn = pool[torch.randint(len(pool), (NEGATIVES * len(positive),), generator=generator)]
    users = positive.users.repeat(1 + NEGATIVES)
    labels = torch.cat([positive.labels, torch.zeros(len(drawn))])
    histories = None if positive.histories is None else positive.histories.repeat(1 + NEGATIVES, 1)
    return Pairs(users, torch.cat([positive.items, drawn]), labels, histories)


def rank(model: nn.Module, table: FieldTable, asked: Questions, hidden: np.ndarray) -> Quality:
    """Return the quality on these questions; only candidates are scored. `hidden` is bool [n, items]."""
    scores = np.zeros(hidden.shape, dtype=np.float32)
    shown = ~hidden
    shown[np.arange(len(asked)), asked.targets] = True
    users, items = np.nonzero(shown)
    if len(users):
        pairs = _question_pairs(asked, users, items)
        scores[users, items] = score_pairs(model, table, pairs)
    return quality(places(scores, asked.targets, hidden), candidates(hidden, asked.targets))


def _question_pairs(asked: Questions, users: np.ndarray, items: np.ndarray) -> Pairs:
    histories = torch.from_numpy(asked.histories[users])
    return Pairs(torch.from_numpy(asked.users[users]), torch.from_numpy(items), torch.zeros(len(items)), histories)
