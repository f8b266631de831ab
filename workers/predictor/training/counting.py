"""The token table of a trace: how often each token id used each expert."""

from __future__ import annotations

import numpy as np

from ...traces.trace import Trace
from ..path.file import TokenCounts

MAX_COUNTED = 255
MAX_ENTRIES = 3_000_000
"""Nonzero counts that a file keeps: about a byte each, compressed. Tokens that were seen most come first."""
MAX_BYTES = 64 << 20
"""Of the table in memory."""


def count_tokens(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """int32 [ids, layers * experts] counts and int64 [ids] sightings, for ids up to the largest."""
    width = trace.layers * trace.expert_count
    ids = int(trace.token_ids.max()) + 1
    counts = np.zeros((ids, width), dtype=np.int32)
    starts = (np.arange(trace.layers) * trace.expert_count)[None, :, None]
    order = np.argsort(trace.token_ids, kind="stable")
    bounds = np.searchsorted(trace.token_ids[order], np.arange(ids + 1))
    for token in np.flatnonzero(np.diff(bounds)).tolist():
        mine = order[bounds[token] : bounds[token + 1]]
        counts[token] = np.bincount((trace.routes[mine] + starts).ravel(), minlength=width)
    return counts, np.diff(bounds)


def compact(counts: np.ndarray, seen: np.ndarray, tokens: np.ndarray) -> TokenCounts:
    """The tokens that were seen, most often first, as far as the file's budget reaches; counts scaled to bytes.

    `tokens` [ids] are the names or ids by which a file knows them.
    """
    order = np.argsort(-seen, kind="stable")[: np.count_nonzero(seen)]
    entries = np.cumsum([np.count_nonzero(counts[token]) for token in order])
    order = order[: min(int(np.searchsorted(entries, MAX_ENTRIES, side="right")), MAX_BYTES // counts.shape[1])]
    scale = np.maximum(seen[order] / MAX_COUNTED, 1.0)
    scaled = np.rint(counts[order] / scale[:, None]).astype(np.uint8)
    return TokenCounts(scaled, np.minimum(seen[order], MAX_COUNTED).astype(np.uint8), tokens[order])
