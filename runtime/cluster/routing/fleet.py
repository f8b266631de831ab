"""The replicas as the router knows them, as arrays; and the state that a replica publishes. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from .forecasts import Forecasts
from .homes import Homes


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State that a replica publishes, about once a second."""

    time_ns: int
    """Time of the replica's own monotonic clock."""
    layers: int = 0
    experts: int = 0
    """MoE layers, and experts of each; 0: not known yet."""
    held: bytes = b""
    """Bits [layers * experts], packed, the first in the highest bit: which ones are in slots or on their way."""
    hits: int = 0
    misses: int = 0
    loaded_bytes: int = 0
    """Counters since the start of the engine."""
    tokens: int = 0
    stall_share: float = 0.0
    """Share of compute's time, since the last state, in which it waited for experts."""

    @property
    def keys(self) -> int:
        """Return the number of experts of all layers together."""
        return self.layers * self.experts


def pack_held(held: np.ndarray) -> bytes:
    """Return `ReplicaState.held` of bool [layers * experts]."""
    return np.packbits(held).tobytes()


class Fleet:
    """All replicas, by index. An index is free again after `remove`, so arrays stay as long as the largest fleet."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Names by index; empty: no replica has this index."""
        self.homes = Homes()
        self.outstanding = np.zeros(0, dtype=np.int64)
        """int64 [replicas]: requests that a replica has and has not ended."""
        self.sent = np.zeros(0, dtype=np.int64)
        """int64 [replicas]: requests that it was ever sent."""
        self.capacity = np.zeros(0, dtype=np.int64)
        """int64 [replicas]: requests that it may have at once."""
        self.open = np.zeros(0, dtype=bool)
        """bool [replicas]: it takes requests; not if it drains, or is gone."""
        self.states: list[ReplicaState | None] = []
        self._index: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self._index)

    def index(self, name: str) -> int:
        """Return the index of a replica, which must be there."""
        return self._index[name]

    def add(self, name: str, capacity: int) -> int:
        """Add a replica; return its index. One that is there already stays as it is, and is open again."""
        if name not in self._index:
            self._index[name] = self._free_index()
        place = self._index[name]
        self.names[place], self.capacity[place], self.open[place] = name, capacity, True
        return place

    def remove(self, name: str) -> None:
        """Remove a replica, if it is there."""
        place = self._index.pop(name, None)
        if place is not None:
            self.names[place], self.open[place], self.states[place] = "", False, None
            self.homes.forget(place)
            self.outstanding[place] = self.sent[place] = self.capacity[place] = 0

    def close(self, name: str) -> None:
        """Let a replica take no more requests."""
        self.open[self._index[name]] = False

    def reopen(self, name: str) -> None:
        """Let a replica that was closed take requests again."""
        self.open[self._index[name]] = True

    def publish(self, name: str, state: ReplicaState, forecasts: Forecasts | None) -> None:
        """Take a published state. What is held is ignored if it is of another size than `forecasts`."""
        place = self._index[name]
        self.states[place] = state
        if forecasts is not None and state.keys == forecasts.experts and len(state.held) * 8 >= state.keys > 0:
            held = np.unpackbits(np.frombuffer(state.held, dtype=np.uint8), count=state.keys)
            self.homes.hold(place, forecasts.features(held / max(int(held.sum()), 1)))

    def send(self, place: int, forecast: np.ndarray) -> None:
        """Note that a request of this forecast, float [FEATURES], was sent to a replica."""
        self.outstanding[place] += 1
        self.sent[place] += 1
        self.homes.send(place, forecast)

    def end(self, name: str) -> None:
        """Note that a replica has one request less."""
        if name in self._index:
            place = self._index[name]
            self.outstanding[place] = max(0, self.outstanding[place] - 1)

    @property
    def free(self) -> np.ndarray:
        """Return int64 [n]: the replicas that are open and have room."""
        return np.flatnonzero(self.open & (self.outstanding < self.capacity))

    @property
    def least(self) -> int:
        """Return the requests of the least busy open replica; 0 without one."""
        return int(self.outstanding[self.open].min()) if self.open.any() else 0

    def _free_index(self) -> int:
        if "" in self.names:
            return self.names.index("")
        self.names.append("")
        self.states.append(None)
        self.homes.reserve(len(self.names))
        self.outstanding = _longer(self.outstanding)
        self.sent = _longer(self.sent)
        self.capacity = _longer(self.capacity)
        self.open = _longer(self.open)
        return len(self.names) - 1


def _longer(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros(1, dtype=array.dtype)])
