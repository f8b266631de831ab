"""Streams under kills: every token of each compared with an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from expertflow.runtime.client.options import Request

from .load import stream_all
from .nodes import Nodes
from .processes import replica_processes

NODE_EVERY = 3
"""One kill in so many takes a whole node, the others a replica."""
LEAST_ALIVE = 2
"""Replicas that must be there at a kill."""


class Killer:
    """Kills a replica or a node, again and again."""

    def __init__(self, nodes: Nodes) -> None:
        self.replicas_killed = self.nodes_killed = 0
        self._nodes = nodes

    def kill(self) -> None:
        """Kill the oldest replica, or every third time the oldest node, unless few replicas are there.

        Call it in the main thread: Ray begins a node there alone.
        """
        alive = replica_processes()
        if len(alive) < LEAST_ALIVE:
            return
        if (self.replicas_killed + self.nodes_killed) % NODE_EVERY == NODE_EVERY - 1:
            self._nodes.replace_one()
            self.nodes_killed += 1
        else:
            os.kill(alive[0], signal.SIGKILL)
            self.replicas_killed += 1


def measure_kills(address: str, requests: list[Request], nodes: Nodes, every_s: float, at_once: int) -> dict[str, Any]:
    """Run streams undisturbed, then under kills; return how they differ, and the longest gaps."""
    calm = stream_all(address, requests, at_once)
    begun_s = time.monotonic()
    killer = Killer(nodes)
    with ThreadPoolExecutor(1) as thread:
        streaming = thread.submit(stream_all, address, requests, at_once)
        while not wait([streaming], every_s).done:
            killer.kill()
    wild = streaming.result()
    seconds = time.monotonic() - begun_s
    gaps = sorted(gap for _, gap in wild)
    return {
        "streams": len(requests),
        "seconds": round(seconds, 1),
        "replicas killed": killer.replicas_killed,
        "nodes killed": killer.nodes_killed,
        **compare_streams([ids for ids, _ in calm], [ids for ids, _ in wild]),
        "worst gap s": round(gaps[-1], 1),
        "95 % of gaps below s": round(gaps[int(0.95 * len(gaps))], 1),
        "undisturbed worst gap s": round(max(gap for _, gap in calm), 1),
    }


def compare_streams(calm: Sequence[list[int]], wild: Sequence[list[int]]) -> dict[str, int]:
    """Return how many streams lost tokens, got some twice, and differ otherwise."""
    pairs = list(zip(calm, wild, strict=True))
    return {
        "lost": sum(len(got) < len(wanted) for wanted, got in pairs),
        "doubled": sum(len(got) > len(wanted) for wanted, got in pairs),
        "different": sum(len(got) == len(wanted) and got != wanted for wanted, got in pairs),
    }
