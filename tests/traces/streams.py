"""Made-up streams: routes are a function of (row, position), so that whatever is read can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from expertflow.workers.traces.records import TracedPlan, TracedStep, TraceHeader, TraceRecord

LAYERS, EXPERTS, TOP_K, WIDTH = 3, 10, 2, 4


def header(stage: str = "compute", epoch: int = 1, **changes: Any) -> TraceHeader:
    facts: dict[str, Any] = {
        "model": "tiny",
        "fingerprint": "f" * 32,
        "layers": LAYERS,
        "experts": EXPERTS,
        "top_k": TOP_K,
        "expert_bytes": 64,
    }
    return TraceHeader(stage=stage, epoch=epoch, **(facts | changes))


def route(row: int, position: int) -> np.ndarray:
    """uint16 [layers, top_k]."""
    return ((row * 3 + position + np.arange(LAYERS * TOP_K)) % EXPERTS).reshape(LAYERS, TOP_K).astype("<u2")


def token(row: int, position: int) -> int:
    return 100 * row + position


def step(number: int, tokens: list[tuple[int, int]], **changes: Any) -> TracedStep:
    """A step over these (row, position); `like` names rows whose tokens and routes other rows have."""
    like = changes.pop("like", {})
    pairs = [(like.get(row, row), position) for row, position in tokens]
    routes = np.stack([route(*pair) for pair in pairs])
    admitted = sorted({row for row, position in tokens if position == 0})
    facts: dict[str, Any] = {
        "unit": 0,
        "experts": routes.tobytes(),
        "weights": (routes / 16).astype("<f2").tobytes(),
        "phase": "prefill" if admitted else "decode",
        "started_ns": 1000 * number,
        "busy_ns": 500,
        "stall_ns": 100,
        "compute_ns": [10, 20, 30, 40],
        "hits": 3,
        "misses": 1,
        "admitted": admitted,
        "seeds": [10_000 + like.get(row, row) for row in admitted],
    }
    return TracedStep(
        step=number,
        token_ids=[token(*pair) for pair in pairs],
        rows=[row for row, _ in tokens],
        positions=[position for _, position in tokens],
        **(facts | changes),
    )


def hidden_of(tokens: list[tuple[int, int]], sampled: list[int]) -> dict[str, Any]:
    """Changes of a step that keeps the states of these places: every value is row + position / 16."""
    values = [tokens[place][0] + tokens[place][1] / 16 for place in sampled]
    states = np.repeat(np.array(values, dtype="<f2"), LAYERS * WIDTH)
    return {"sampled": sampled, "hidden": states.tobytes()}


def plan(number: int, score: int) -> TracedPlan:
    return TracedPlan(step=number, sent_ns=number, scores=bytes([score]) * LAYERS * EXPERTS)


def encode(*records: TraceRecord) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, records))


def write(folder: Path, *records: TraceRecord, stage: str = "compute", epoch: int = 1, tail: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{stage}.{epoch}.msgpack"
    file.write_bytes(encode(header(stage, epoch), *records) + tail)
    return file
