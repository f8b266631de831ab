"""Routing of many sequences as arrays, and its npz file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError
from .arrays import read_arrays
from .records import MAX_EXPERTS
from .routing import UNROUTED

REMEDY = "Give an npz file with `experts` [tokens, layers, k], as `expertflow trace --npz` writes it"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """N tokens of S sequences; the tokens of a sequence are contiguous and in order."""

    routes: np.ndarray
    """uint16 [N, layers, top_k]: expert numbers."""
    token_ids: np.ndarray
    """int64 [N]; indices into `vocabulary` if there is one."""
    offsets: np.ndarray
    """int64 [S + 1]: index of each sequence's first token, and the end."""
    expert_count: int
    """Experts a layer."""
    vocabulary: list[str] | None = None
    """Token strings, if the trace names tokens by strings."""
    decoded: np.ndarray | None = None
    """bool [N]: the token ran in a decode step; None: unknown."""
    weights: np.ndarray | None = None
    """float16 [N, layers, top_k]: the router's weight of each expert."""
    steps: np.ndarray | None = None
    """int64 [N]: the step that ran the token, counted from 0; None: not from a running engine."""
    model: str = ""
    """Fingerprint of the model (`Survey.fingerprint`); empty: unknown."""
    encoder_layers: int = 0
    """The first so many layers are an encoder's. A sequence is then its prompt, whose `routes` are UNROUTED in other
    layers, followed by the decoder's tokens, whose `routes` are UNROUTED in the encoder's."""

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    @property
    def layers(self) -> int:
        return self.routes.shape[1]

    @property
    def top_k(self) -> int:
        return self.routes.shape[2]

    def take(self, sequences: np.ndarray) -> Trace:
        """Return the trace of these sequences, int64 [n], indices, in this order."""
        parts = [np.arange(*self.offsets[index : index + 2].tolist()) for index in sequences.tolist()]
        tokens = np.concatenate([np.empty(0, np.int64), *parts])
        return self._pick(tokens, np.array([len(part) for part in parts], dtype=np.int64))

    def decoder_part(self) -> Trace:
        """Return the decoder's tokens in the decoder's layers; without an encoder the whole trace."""
        if not self.encoder_layers:
            return self
        own = self.routes[:, -1, 0] != UNROUTED
        lengths = np.diff(np.concatenate([[0], np.cumsum(own)])[self.offsets])
        part = self._pick(np.flatnonzero(own), lengths[lengths > 0])
        weights = None if part.weights is None else part.weights[:, self.encoder_layers :]
        return replace(part, routes=part.routes[:, self.encoder_layers :], weights=weights, encoder_layers=0)

    def _pick(self, tokens: np.ndarray, lengths: np.ndarray) -> Trace:
        """Return the trace of these tokens (indices), as sequences of these lengths."""
        return Trace(
            routes=self.routes[tokens],
            token_ids=self.token_ids[tokens],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            expert_count=self.expert_count,
            vocabulary=self.vocabulary,
            decoded=None if self.decoded is None else self.decoded[tokens],
            weights=None if self.weights is None else self.weights[tokens],
            steps=None if self.steps is None else self.steps[tokens],
            model=self.model,
            encoder_layers=self.encoder_layers,
        )

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Trace, Trace]:
        """Return two traces: the sequences to train on, and a random share `held_out` to judge by."""
        order = np.random.default_rng(seed).permutation(self.sequences)
        cut = max(int(round(self.sequences * held_out)), 1)
        return self.take(np.sort(order[cut:])), self.take(np.sort(order[:cut]))


def read_npz(file: str | Path) -> Trace:
    """Return the trace in an npz file. Raises UsageError if there is none or if its arrays do not fit together."""
    arrays = read_arrays(Path(file), "a trace", REMEDY)
    try:
        return _trace_of(arrays, str(file))
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"cannot be read as a trace ({error})", str(file), REMEDY) from error


def write_npz(trace: Trace, file: str | Path) -> None:
    """Write a trace as `read_npz` reads it."""
    optional = {name: getattr(trace, name) for name in ("decoded", "weights", "steps")}
    arrays: dict[str, Any] = {name: array for name, array in optional.items() if array is not None}
    if trace.vocabulary is None:
        arrays["token_ids"] = trace.token_ids
    else:
        arrays["tokens"] = np.array(trace.vocabulary)[trace.token_ids]
    arrays |= {"experts_per_layer": trace.expert_count, "model": trace.model, "encoder_layers": trace.encoder_layers}
    np.savez_compressed(file, experts=trace.routes, prompt_offsets=trace.offsets, **arrays)


def _trace_of(arrays: dict[str, np.ndarray], where: str) -> Trace:
    routes = arrays.get("experts")
    if routes is None or routes.ndim != 3 or not routes.size or not _holds_counts(routes):
        raise UsageError("no array `experts` [tokens, layers, k] of expert numbers in it", where, REMEDY)
    expert_count = _expert_count(arrays, routes, where)
    token_ids, vocabulary = _tokens(arrays, len(routes), where)
    return Trace(
        routes=routes.astype(np.uint16),
        token_ids=token_ids,
        offsets=_offsets(arrays.get("prompt_offsets"), len(routes), where),
        expert_count=expert_count,
        vocabulary=vocabulary,
        model=str(arrays.get("model", "")),
        encoder_layers=int(arrays.get("encoder_layers", 0)),
        **{name: _of_tokens(arrays, name, len(routes), where) for name in ("decoded", "weights", "steps")},
    )


def _tokens(arrays: dict[str, np.ndarray], count: int, where: str) -> tuple[np.ndarray, list[str] | None]:
    if (ids := _of_tokens(arrays, "token_ids", count, where)) is not None:
        if not _holds_counts(ids):
            raise UsageError("`token_ids` are not numbers from 0 to 2^63 - 1", where, REMEDY)
        return ids.astype(np.int64), None
    strings = _of_tokens(arrays, "tokens", count, where)
    if strings is None:
        return np.zeros(count, dtype=np.int64), None
    vocabulary, ids = np.unique(strings, return_inverse=True)
    return ids.astype(np.int64), vocabulary.tolist()


def _of_tokens(arrays: dict[str, np.ndarray], name: str, count: int, where: str) -> np.ndarray | None:
    array = arrays.get(name)
    if array is not None and len(array) != count:
        raise UsageError(f"`{name}` has {len(array)} entries for {count} tokens", where, REMEDY)
    if array is not None and array.ndim != (3 if name == "weights" else 1):
        raise UsageError(f"`{name}` has {array.ndim} dimensions", where, REMEDY)
    return array


def _offsets(offsets: np.ndarray | None, count: int, where: str) -> np.ndarray:
    if offsets is None:
        return np.array([0, count], dtype=np.int64)
    counted = offsets.astype(np.int64) if _holds_counts(offsets) and len(offsets) > 1 else np.array([-1])
    if counted[0] != 0 or counted[-1] != count or (np.diff(counted) < 0).any():
        raise UsageError(f"`prompt_offsets` must grow from 0 to {count}", where, REMEDY)
    return counted


def _expert_count(arrays: dict[str, np.ndarray], routes: np.ndarray, where: str) -> int:
    routed = routes[routes != UNROUTED] if arrays.get("encoder_layers", 0) else routes
    seen = int(routed.max(initial=0)) + 1
    stated = int(arrays.get("experts_per_layer", _next_multiple_of_8(seen)))
    if stated < seen:
        raise UsageError(f"expert {seen - 1} in a model of {stated} experts a layer", where, REMEDY)
    if stated > MAX_EXPERTS:
        what = f"{stated:,} experts a layer, of which expert {seen - 1:,} is used; {MAX_EXPERTS:,} are the most"
        raise UsageError(what, where, REMEDY)
    return stated


def _holds_counts(array: np.ndarray) -> bool:
    """Tell whether the array holds integers from 0 to 2^63 - 1 only."""
    return array.dtype.kind in "ui" and (not array.size or (array.min() >= 0 and array.max() < 2**63))


def _next_multiple_of_8(count: int) -> int:
    """Return `count` rounded up, since the last experts of a layer may be unused."""
    return -(-count // 8) * 8
