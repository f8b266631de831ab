"""What on-demand LRU with as many slots would have loaded in a run, by a replay of that run's own routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from expertflow.runtime.replay.atomic import make_cache, replay
from expertflow.runtime.replay.source import ReplaySource, open_source
from expertflow.runtime.replay.uses import Uses
from expertflow.workers.loader.policies import make_policy


def lru_bytes(trace: Path, batches: Sequence[int], warm: int) -> list[float]:
    """Of a decode step, for each case of a run, after all that came before it.

    Every case is a trial and a run proper, of as many sequences (`batches`), of which the first `warm` decode steps are
    left out.
    """
    source = open_source(trace, 0, 0)
    if source.log is None:
        raise RuntimeError("the trace says nothing of its steps")
    slots, expert_bytes = source.log.header.slots, source.log.header.expert_bytes
    return [
        expert_bytes * (_loads(source.uses, end, slots) - _loads(source.uses, first, slots)) / rounds
        for first, end, rounds in _windows(source, batches, warm)
    ]


def _windows(source: ReplaySource, batches: Sequence[int], warm: int) -> Iterator[tuple[int, int, float]]:
    """The first of a case's steps, the one after its last, and how many tokens a row ran in them."""
    trace, decoded = source.trace, source.trace.decoded
    if decoded is None or trace.sequences != 2 * sum(batches):
        raise RuntimeError(f"the trace has {trace.sequences} sequences, not {2 * sum(batches)}")
    in_order = np.argsort(source.steps[trace.offsets[:-1]], kind="stable")
    at = 0
    for rows in batches:
        sequences = in_order[at + rows : at + 2 * rows]
        at += 2 * rows
        tokens = [_decoded_tokens(trace.offsets, decoded, sequence)[warm:] for sequence in sequences]
        steps = source.steps[np.concatenate(tokens)]
        yield int(steps.min()), int(steps.max()) + 1, len(steps) / rows


def _decoded_tokens(offsets: np.ndarray, decoded: np.ndarray, sequence: int) -> np.ndarray:
    """Places in the trace."""
    return offsets[sequence] + np.flatnonzero(decoded[offsets[sequence] : offsets[sequence + 1]])


def _loads(uses: Uses, steps: int, slots: int) -> int:
    """Of the first steps. An engine with a slot for every expert has filled them all before the first."""
    if slots >= uses.layers * uses.experts:
        return 0
    head, policy = uses.head(steps), make_policy("lru", uses.layers, uses.experts, 1)  # it does not ask for top-k
    return replay(head, policy, make_cache("pool", uses, slots)).loads if steps else 0
