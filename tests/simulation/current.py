"""The history that runs now in this thread, and the process of it whose turn it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expertflow.tests.simulation.processes import Process
    from expertflow.tests.simulation.world import World


class Current:
    """Set by each history; the simulated parts find it here, since real shells cannot hand it on."""

    world: World
    process: Process


CURRENT = Current()
