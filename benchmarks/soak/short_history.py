"""Run the command line with a history of the engine that is full after a minute instead of an hour.

python -m expertflow.benchmarks.soak.short_history serve …

So a run of half an hour shows what a supervisor does for weeks: for each point that comes, one goes.
"""

from __future__ import annotations

import sys
from functools import partial

from expertflow.__main__ import main
from expertflow.runtime.engine import status_board
from expertflow.runtime.monitor.history import HistoryRing

POINTS = 60


def shorten() -> None:
    """Let engines of this process keep a history of `POINTS` seconds."""
    status_board.HistoryRing = partial(HistoryRing, max_points=POINTS)


if __name__ == "__main__":
    shorten()
    sys.exit(main())
