"""Run ExpertFlow in all its processes: its own client submits the prompts of a case together."""

from __future__ import annotations

import sys
import time
from math import inf
from typing import Any

from expertflow import Client, Config, Supervisor

from .base import FEW_STEPS, Case, CaseResult, Contender, Task, TaskResult, read_task, write_result

PUBLISHED_S = 1.2
"""Seconds after which every stage has published its counters."""
FILLED_S = 60.0
"""Longest wait for slots to be filled."""
OVERHEAD_BYTES = 850_000_000
"""Memory of all processes beside expert slots, files of the libraries included. With 720 MB their code is evicted and
read again in every step, which then takes several times as long."""
LITTLE_KV = "64MiB"
COUNTING = ("loader", "compute")


class ExpertFlow(Contender):
    """Hold this share of the experts; without one, as many as fit the limit. `options`: of the configuration."""

    name = "ExpertFlow"
    module = "ours"
    draws = True

    def __init__(self, share: str = "", **options: Any) -> None:
        self._share, self._options = share, options
        self.name = f"ExpertFlow {share}".strip()

    def options(self, limit_bytes: int) -> dict[str, Any]:
        kv = {"kv_memory": LITTLE_KV} if limit_bytes else {}
        return {"expert_memory": self._share or str(limit_bytes - OVERHEAD_BYTES), **kv, **self._options}


def main() -> None:
    """Run the task on its model, or on the folder that the only argument names."""
    task = read_task()
    model = (sys.argv[1:] or [task.model])[0]
    rows = max(len(case.prompts) for case in task.cases)
    config = Config.load("cpu-disk", model=model, batch_size=rows, **task.options)
    begun = time.perf_counter()
    with Supervisor(config) as engine, Client(engine.address) as client:
        ready_s = time.perf_counter() - begun
        write_result(TaskResult(ready_s=ready_s, cases=[_run(client, case, task) for case in task.cases]))


def _run(client: Client, case: Case, task: Task) -> CaseResult:
    """Run a case; with `trial` a few steps first bring the slots to what they hold in use, and fills come to an end."""
    if case.trial:
        _decode(client, case, task.trial_steps, case.seed + 1, task.patience_s)
        _await_fills(client)
    if case.prefills:
        return _prefill(client, case)
    before = _counters(client)
    times, tokens = _decode(client, case, case.steps, case.seed, task.patience_s)
    time.sleep(PUBLISHED_S)
    after = _counters(client)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    facts = _facts(grown, sum(map(len, tokens)), times[-1] - times[0]) | {"expert_share": _share_held(client)}
    steps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
    return CaseResult(first_s=times[1] - times[0], steps_s=steps, tokens=tokens, facts=facts)


def _prefill(client: Client, case: Case) -> CaseResult:
    """Time the prompts to the first token of all rows, several times."""
    firsts = [_decode(client, case, 1, case.seed, inf)[0] for _ in range(case.prefills)]
    spent = [times[1] - times[0] for times in firsts]
    return CaseResult(first_s=spent[0], steps_s=spent)


def _decode(
    client: Client, case: Case, steps: int, seed: int, patience_s: float
) -> tuple[list[float], list[list[int]]]:
    """Return when the case was submitted, when all rows had their first token, their second and so on, and the tokens.

    The case is cancelled when patience ends; every row keeps as many tokens.
    """
    begun, count = time.perf_counter(), [0] * len(case.prompts)
    times = [begun]
    batch = client.submit(case.prompts, max_new_tokens=steps, temperature=1.0, seed=seed, eos_ids=[])
    for event in batch:
        count[event.index] += len(event.token_ids)
        while len(times) <= min(count):
            times.append(time.perf_counter())
        if len(times) > FEW_STEPS + 1 and times[-1] - begun > patience_s:
            batch.cancel()
    tokens = [list(done.token_ids) for done in batch.results()]
    return times, [row[: len(times) - 1] for row in tokens]


def _await_fills(client: Client) -> None:
    """Wait until no expert is brought in any more: with room for all, the engine fills its slots while it runs."""
    loads, ends = -1.0, time.monotonic() + FILLED_S
    while (now := _counters(client).get("loads", 0.0)) != loads and time.monotonic() < ends:
        loads = now
        time.sleep(PUBLISHED_S)


def _counters(client: Client) -> dict[str, float]:
    """Read the counters; a stage that has published nothing yet has none."""
    stages = client.stats().stages
    counters = {name: value for stage in COUNTING if stage in stages for name, value in stages[stage].counters.items()}
    return counters | {f"busy_{name}_ns": stage.busy_ns for name, stage in stages.items()}


def _share_held(client: Client) -> float:
    """Return the share of the experts that have a slot."""
    facts = client.stats().facts["loader"]
    return float(facts["slots"]) * float(facts["expert_bytes"]) / float(facts["experts_bytes"])


def _facts(grown: dict[str, float], generated: int, elapsed_s: float) -> dict[str, float]:
    """Compute the facts of a case; a ratio without anything to divide by is left out."""
    each_bytes = grown["bytes"] / max(grown["loads"], 1)
    busy = {name.removesuffix("_ns"): value / 1e9 / elapsed_s for name, value in grown.items() if "busy_" in name}
    ratios = {
        "hit_ratio": (grown["hits"], grown["hits"] + grown["misses"]),
        "forecast_precision": (grown["useful"], grown["useful"] + grown["wasted"]),
        "forecast_recall": (grown["useful"] + grown["promoted"], grown["loads"]),
    }
    return {
        **busy,
        **{name: part / whole for name, (part, whole) in ratios.items() if whole > 0},
        "bytes_per_token": grown["bytes"] / generated,
        "wasted_bytes_per_token": grown["wasted"] * each_bytes / generated,
        "stall_share": grown["stall_ns"] / 1e9 / elapsed_s,
    }


if __name__ == "__main__":
    main()
