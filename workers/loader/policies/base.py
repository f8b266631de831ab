"""What a policy is, and what a later use is worth now.

A policy knows nothing of plans and slots; what is foretold comes on top (eviction.py). Experts are numbered by key,
layer * experts + expert; a tick is step * layers + layer, the time at which a layer of a step runs.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

DISCOUNT_A_STEP = 0.8
"""A use one step later is worth so much less."""
FAR_STEPS = 1000


def discount(ticks: np.ndarray, layers: int) -> np.ndarray:
    """What a use so many ticks from now is worth now: 1 at once, falling, never quite 0."""
    return np.exp(np.clip(ticks, 0, FAR_STEPS * layers) * (math.log(DISCOUNT_A_STEP) / layers))


def discount_of_share(share: np.ndarray) -> np.ndarray:
    """The expected discount, at a visit of its layer, of the first use of an expert that each visit uses with
    independent chance `share`: a geometric series. It grows with the share, from nearly 0 to 1."""
    return share / (1 - (1 - share) * DISCOUNT_A_STEP)


class Policy(Protocol):
    """Hears how experts are used; says what each is worth keeping. What is worth least is evicted first.

    Two experts of one layer always compare the same, whichever tick of a step the comparison is made at and whatever
    other layers use meanwhile: so replay may judge all layers of a step at once.
    """

    def touched(self, keys: np.ndarray, step: int) -> None:
        """The step that runs asks for these experts, layer by layer, held or not."""
        ...

    def used(self, keys: np.ndarray, step: int) -> None:
        """A step is over and has used these experts, ascending, those that were touched included."""
        ...

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """float64 [layers, experts]: the expected discount, at tick `now`, of the first use later than tick `after`.

        `after` may differ by layer, int64 [layers, 1].
        """
        ...
