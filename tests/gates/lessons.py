"""A made-up model whose next layer can be told exactly from what goes into this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from expertflow.tests.traces.streams import EXPERTS, LAYERS, TOP_K, WIDTH, step, write
from expertflow.workers.traces.records import TracedStep

ROWS, POSITIONS = 40, 50


def write_lessons(folder: Path, positions: int = POSITIONS, seed: int = 0) -> None:
    """A trace of ROWS sequences with all hidden states; layer l chooses by a fixed matrix on the states of l - 1."""
    rng = np.random.default_rng(seed)
    routers = np.random.default_rng(1).normal(size=(LAYERS, WIDTH, EXPERTS))
    write(folder, *(_lesson(number, rng, routers) for number in range(positions)))


def _lesson(number: int, rng: np.random.Generator, routers: np.ndarray) -> TracedStep:
    states = rng.normal(size=(ROWS, LAYERS, WIDTH)).astype("<f2")
    scores = np.einsum("tlw,lwe->tle", np.roll(states, 1, axis=1).astype(np.float32), routers)
    routes = np.argsort(-scores, axis=2)[:, :, :TOP_K].astype("<u2")
    return step(
        number,
        [(row, number) for row in range(ROWS)],
        experts=routes.tobytes(),
        sampled=list(range(ROWS)),
        hidden=states.tobytes(),
    )
