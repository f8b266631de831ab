"""Brings the experts of a layer to the kernel: the holdings core, the slot views, and the wait for missing experts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from ....ipc.messages import HeldFromLoader, Message
from .holdings import Computed, Holdings, LayerEnded, LayerStarted, LoaderJoined, Run
from .slots import ExpertWeights, SlotViews

MAX_GROUP = 8
"""Experts of one call while others are missing: their slots are released, and messages handled, only after it."""
IDLE_MS = 1000
"""Longest sleep of a process with nothing pending."""


class FeedCounts(NamedTuple):
    """Experts that were held (`hits`) or not (`misses`) when their layer began, and the time spent waiting for them."""

    hits: int
    misses: int
    stall_ns: int

    def __sub__(self, other: FeedCounts) -> FeedCounts:
        return FeedCounts(*(count - before for count, before in zip(self, other, strict=True)))


class ComputeStopped(BaseException):
    """The process was asked to end while a step ran. No `Exception`: no row failed, and none may go on."""


class Residency:
    """An `ExpertFeed` over holdings.

    `send` takes messages to the loader. `receive` returns the loader's messages at once. `wait` blocks until there is
    one, or raises ComputeStopped.
    """

    def __init__(
        self,
        holdings: Holdings,
        views: SlotViews,
        send: Callable[[Message], None],
        receive: Callable[[], list[HeldFromLoader]],
        wait: Callable[[], list[HeldFromLoader]],
        clock_ns: Callable[[], int],
    ) -> None:
        self._holdings, self._views = holdings, views
        self._send, self._receive, self._wait, self._clock_ns = send, receive, wait, clock_ns
        self._step = self._layer = -1
        self._runs: list[tuple[int, int]] = []
        """(expert, slot) that can be computed now."""
        self._stall_ns = 0
        self._wanted = 0
        """Number of distinct experts of the current layer."""

    @property
    def counts(self) -> FeedCounts:
        """Hits, misses and stall since the start."""
        return FeedCounts(self._holdings.hits, self._holdings.misses, self._stall_ns)

    @property
    def counters(self) -> dict[str, int | float]:
        """Counters since the start, by name."""
        return dict(self.counts._asdict())

    def waiting_for(self) -> dict[str, int | str]:
        """Return what a wait is for, as details of a span: step, layer, the missing experts, how many it wants."""
        missing = ",".join(map(str, sorted(self._holdings.missing)))
        return {"step": self._step, "layer": self._layer, "experts": missing, "wanted": self._wanted}

    def begin_step(self, number: int) -> None:
        """Begin step `number`; layers that begin later belong to it."""
        self._step = number

    def receive(self, message: HeldFromLoader) -> None:
        """Handle a message that the loader sent between layers."""
        self._perform(self._holdings.handle(message))

    def loader_joined(self) -> None:
        """Tell a new loader what is held and what is still needed (R9)."""
        self._perform(self._holdings.handle(LoaderJoined()))

    def poll(self) -> int:
        """Handle asynchronous work; return the milliseconds until the next call is due."""
        return IDLE_MS

    def begin(self, layer: int, experts: list[int]) -> None:
        """Begin a layer that chose these experts: ask the loader for the missing ones."""
        for message in self._receive():
            self.receive(message)
        self._layer, self._wanted = layer, len(experts)
        self._runs = self._perform(self._holdings.handle(LayerStarted(self._step, layer, experts)))

    def stack(self) -> ExpertWeights | None:
        """Return all experts of the layer, [experts, ...], if its chosen ones are in their home slots (`SlotViews`)."""
        home = self._layer * self._views.experts
        if self._holdings.missing or any(slot != home + expert for expert, slot in self._runs):
            return None
        return self._views.stack(self._layer)

    def finish(self) -> None:
        """End a layer that was computed from `stack`."""
        self._perform(self._holdings.handle(Computed([expert for expert, _ in self._runs])))
        self._perform(self._holdings.handle(LayerEnded()))

    def stream(self, together: Collection[int] = ()) -> Iterator[list[tuple[int, ExpertWeights]]]:
        """Yield the experts of the layer in groups (R4): first those that are held, then each as it arrives.

        Experts in `together` that are held now form one group; each other expert is a group of its own. The slots of a
        group stay pinned until the next is asked for. Handles the loader's messages after each group: released slots
        are filled again while the others are computed.
        """
        runs = deque(self._runs)
        while True:
            while runs:
                group = self._take_group(runs, together)
                yield [(expert, self._views.weights(slot, self._layer, expert)) for expert, slot in group]
                runs += self._perform(self._holdings.handle(Computed([expert for expert, _ in group])))
                runs += self._on_messages(self._receive())
            if self._holdings.layer_done:
                break
            runs += self._await_arrivals()
        self._perform(self._holdings.handle(LayerEnded()))

    def _take_group(self, runs: deque[tuple[int, int]], together: Collection[int]) -> list[tuple[int, int]]:
        """Take the next group of (expert, slot) out of `runs`."""
        if not together or runs[0][0] not in together:
            return [runs.popleft()]
        limit = MAX_GROUP if self._holdings.missing else len(runs)
        group = [run for run in runs if run[0] in together][:limit]
        taken = {expert for expert, _ in group}
        rest = [run for run in runs if run[0] not in taken]
        runs.clear()
        runs += rest
        return group

    def _await_arrivals(self) -> list[tuple[int, int]]:
        started_ns = self._clock_ns()
        messages = self._wait()
        self._stall_ns += self._clock_ns() - started_ns
        return self._on_messages(messages)

    def _on_messages(self, messages: list[HeldFromLoader]) -> list[tuple[int, int]]:
        return [run for message in messages for run in self._perform(self._holdings.handle(message))]

    def _perform(self, actions: list[Any]) -> list[tuple[int, int]]:
        """Send the messages among the actions; return the (expert, slot) that can run."""
        runs: list[tuple[int, int]] = []
        for action in actions:
            if isinstance(action, Run):
                runs += action.experts
            else:
                self._send(action)
        return runs
