"""Measure how soon an engine notices and mends the death or hang of each stage, and pauses of reloads and ends.

python -m expertflow.benchmarks.recovery --repeats 5 --out docs/results/recovery.json

The built-in model runs with a quarter of its experts in memory. Each stage gets SIGKILL, SIGSEGV and SIGSTOP in the
middle of a text. `noticed`: until the engine says that the stage is down; a stopped stage is found after
`hang_timeout_s`, here 5 s. `ready`: until its successor is. `pause`: the longest time between two tokens. The pause of
a reload is that of a text in whose middle it comes. A supervisor in its own process is killed with SIGKILL while it
serves: `gone` is the time until its last process has ended, `again` that of the next start. Figures are medians with an
interval of 95 % (bootstrap), and the largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expertflow import Client, Config, Supervisor

from ..intervals import median_interval
from ..models import EXAMPLES
from ..report import show_table, write_json
from .endings import end_times, reload_pauses, rounded
from .strikes import Strike, strike_all

HANG_TIMEOUT_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    figures = measure(options.repeats)
    show_table("after a strike, in seconds: median (interval of 95 %), most", figures["strikes"], left=2)
    show_table("reloads and ends, in seconds: median (interval of 95 %), most", figures["ends"])
    write_json(options.out, figures)


def measure(repeats: int) -> dict[str, Any]:
    """Return the rows of both tables, and all times."""
    config = Config.load(
        model=str(EXAMPLES / "model"), expert_memory="25%", hang_timeout_s=HANG_TIMEOUT_S, restart_limit=10**6
    )
    with Supervisor(config) as engine, Client(engine.address) as client:
        strikes = strike_all(engine, client, repeats)
        ends = {f"pause of a reload of {name}": times for name, times in reload_pauses(engine, client, repeats).items()}
    ends |= {f"supervisor killed: {name}": times for name, times in end_times(repeats).items()}
    return {
        "strikes": [_strike_row(stage, name, found) for (stage, name), found in strikes.items()],
        "ends": [{"what": what, "times": len(times), "seconds": _figure(times)} for what, times in ends.items()],
        "strike_times": {f"{stage} {name}": list(map(rounded, found)) for (stage, name), found in strikes.items()},
        "end_times": {what: rounded(times) for what, times in ends.items()},
    }


def _strike_row(stage: str, name: str, strikes: Sequence[Strike]) -> dict[str, object]:
    noticed, ready, pauses = (list(times) for times in zip(*strikes, strict=True))
    row = {"noticed": _figure(noticed), "ready": _figure(ready), "pause": _figure(pauses)}
    return {"stage": stage, "signal": name, "strikes": len(strikes), **row}


def _figure(times: Sequence[float]) -> str:
    return f"{median_interval(times)}, {max(times):.2f}"


if __name__ == "__main__":
    main()
