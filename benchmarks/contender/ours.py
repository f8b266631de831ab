"""ExpertFlow in all its processes: its own client submits the prompts of a case together."""

from __future__ import annotations

import time
from typing import Any

from expertflow import Client, Config, Supervisor

from .kind import Contender
from .order import FEW_STEPS, Answer, Answered, Case, Order, give, read_order

PUBLISHED_S = 1.2
"""After which every stage has published its counters."""
OVERHEAD_BYTES = 850_000_000
"""What all processes take beside expert slots, files of the libraries included: with 720 MB their code is evicted and
read again in every step, which then takes several times as long."""
LITTLE_KV = "64MiB"
COUNTING = ("loader", "compute")


class ExpertFlow(Contender):
    """With this share of the experts; without one, with as many as fit the limit."""

    name = "ExpertFlow"
    module = "ours"
    draws = True

    def __init__(self, share: str = "") -> None:
        self._share = share
        self.name = f"ExpertFlow {share}".strip()

    def options(self, limit_bytes: int) -> dict[str, Any]:
        kv = {"kv_memory": LITTLE_KV} if limit_bytes else {}
        return {"expert_memory": self._share or str(limit_bytes - OVERHEAD_BYTES), **kv}


def main() -> None:
    order = read_order()
    rows = max(len(case.prompts) for case in order.cases)
    config = Config.load("cpu-disk", model=order.model, batch_size=rows, **order.options)
    begun = time.perf_counter()
    with Supervisor(config) as engine, Client(engine.address) as client:
        ready_s = time.perf_counter() - begun
        give(Answer(ready_s=ready_s, cases=[_run(client, case, order) for case in order.cases]))


def _run(client: Client, case: Case, order: Order) -> Answered:
    """With `trial` a few steps first bring the slots to what they hold in use; without, nothing is waited for."""
    if case.trial:
        _decode(client, case, order.trial_steps, case.seed + 1, order.patience_s)
        time.sleep(PUBLISHED_S)
    before = _counters(client)
    times, tokens = _decode(client, case, case.steps, case.seed, order.patience_s)
    time.sleep(PUBLISHED_S)
    after = _counters(client)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    facts = _facts(grown, sum(map(len, tokens)), times[-1] - times[0]) | {"expert_share": _share_held(client)}
    steps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
    return Answered(first_s=times[1] - times[0], steps_s=steps, tokens=tokens, facts=facts)


def _decode(
    client: Client, case: Case, steps: int, seed: int, patience_s: float
) -> tuple[list[float], list[list[int]]]:
    """When it was submitted, when all rows had their first token, their second and so on; the tokens, as many of each
    row. It is cancelled when patience ends."""
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


def _counters(client: Client) -> dict[str, float]:
    """Of a stage that has published nothing yet there are none."""
    stages = client.stats().stages
    counters = {name: value for stage in COUNTING if stage in stages for name, value in stages[stage].counters.items()}
    return counters | {f"busy_{name}_ns": stage.busy_ns for name, stage in stages.items()}


def _share_held(client: Client) -> float:
    """Of the experts, as many as have a slot."""
    facts = client.stats().facts["loader"]
    return float(facts["slots"]) * float(facts["expert_bytes"]) / float(facts["experts_bytes"])


def _facts(grown: dict[str, float], generated: int, elapsed_s: float) -> dict[str, float]:
    """Of a case. A ratio without anything to divide by is left out."""
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
