"""Ranking by popularity alone, on the same stream and questions: the row that a model must beat."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from .ctr.stream import CtrWindow
from .ranking.places import candidates, places, quality
from .readers.rows import Ratings
from .stream import StreamSettings, hidden_items
from .windows import Seen, cut_windows, next_questions


def run_popularity_stream(ratings: Ratings, settings: StreamSettings) -> Iterator[CtrWindow]:
    """Yield the quality of counts in the window's training part, for each window."""
    items = len(ratings.item_names)
    seen = Seen(len(ratings.user_names), items)
    windows = cut_windows(ratings, settings.windows, settings.least)
    for number, window in enumerate(windows[:-1]):
        started, started_processor = time.perf_counter(), time.process_time()
        counts = np.bincount(window.items[: window.trained_rows], minlength=items)
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - started_processor
        seen.add(window)
        asked = next_questions(windows[number + 1])
        hidden = hidden_items(asked, seen, items)
        scores = np.broadcast_to(counts, hidden.shape)
        tested = quality(places(scores, asked.targets, hidden), candidates(hidden, asked.targets))
        yield CtrWindow(
            window=number,
            epochs=0,
            absorb_seconds=seconds,
            absorb_processor_seconds=processor_seconds,
            quality=tested,
        )
