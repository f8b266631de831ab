"""The interface of eviction policies, and the discount of later uses.

A policy knows neither predictions nor slots; eviction.py adds the predictions. Experts are numbered by key,
layer * experts + expert. A tick is step * layers + layer, the time at which a layer of a step runs.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

DISCOUNT_A_STEP = 0.8
"""Factor by which a use is worth less one step later."""
FAR_STEPS = 1000


def discount(ticks: np.ndarray, layers: int) -> np.ndarray:
    """Return what a use that many ticks from now is worth now: 1 at once, falling, never quite 0.

    Takes ticks of any shape; returns float64 of that shape.
    """
    return np.exp(np.clip(ticks, 0, FAR_STEPS * layers) * (math.log(DISCOUNT_A_STEP) / layers))


def discount_of_share(share: np.ndarray) -> np.ndarray:
    """Return the expected discount of the first use, at a visit of the expert's layer.

    Each visit uses the expert with independent chance `share` (0 to 1, any shape): a geometric series. The result has
    that shape and grows with the share, from nearly 0 to 1.
    """
    return share / (1 - (1 - share) * DISCOUNT_A_STEP)


class Policy(Protocol):
    """Learns how experts are used and returns what each is worth keeping. The least worth is evicted first.

    Two experts of one layer always compare the same, at every tick of a step and whatever other layers use meanwhile.
    So replay may judge all layers of a step at once.
    """

    def touched(self, keys: np.ndarray, step: int) -> None:
        """Learn that the running step asks for these experts, int64 [count], layer by layer, held or not."""
        ...

    def used(self, keys: np.ndarray, step: int) -> None:
        """Learn that a step is over and used these experts, int64 [count], ascending, the touched ones included."""
        ...

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the expected discount, at tick `now`, of the first use later than tick `after`.

        float64 [layers, experts], above 0 up to 1; higher is kept longer. `after` may differ by layer, int64
        [layers, 1].
        """
        ...
