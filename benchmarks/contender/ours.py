"""ExpertFlow in all its processes: its own client submits the prompts of a case together."""

from __future__ import annotations

import time
from typing import Any

from expertflow import Client, Config, Supervisor

from .kind import Contender
from .order import Answer, Answered, Case, Order, give, read_order

PUBLISHED_S = 1.2
"""After which every stage has published its counters."""


OVERHEAD_BYTES = 720_000_000
"""What all processes take beside expert slots and the rest of the model: code, buffers, prefill."""


class ExpertFlow(Contender):
    """With this share of the experts; without one, with as many as fit the limit."""

    name = "ExpertFlow"
    module = "ours"
    draws = True

    def __init__(self, share: str = "") -> None:
        self._share = share
        self.name = f"ExpertFlow {share}".strip()

    def options(self, limit_bytes: int) -> dict[str, Any]:
        return {"expert_memory": self._share or str(limit_bytes - OVERHEAD_BYTES), "kv_memory": "64MiB"}


def main() -> None:
    order = read_order()
    config = Config.load("cpu-disk", model=order.model, **order.options)
    begun = time.perf_counter()
    with Supervisor(config) as engine, Client(engine.address) as client:
        ready_s = time.perf_counter() - begun
        give(Answer(ready_s=ready_s, cases=[_run(client, case, order) for case in order.cases]))


def _run(client: Client, case: Case, order: Order) -> Answered:
    """A few steps bring the cache to what it is in use, then the case itself."""
    _decode(client, case, order.trial_steps, case.seed + 1)
    before = _counters(client)
    times, tokens = _decode(client, case, case.steps, case.seed)
    grown = {name: value - before.get(name, 0) for name, value in _counters(client).items()}
    steps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
    return Answered(first_s=times[1] - times[0], steps_s=steps, tokens=tokens, facts=_facts(grown, case, times))


def _decode(client: Client, case: Case, steps: int, seed: int) -> tuple[list[float], list[list[int]]]:
    """When it was submitted, when each token of the first row came; all tokens."""
    times = [time.perf_counter()]
    batch = client.submit(case.prompts, max_new_tokens=steps, temperature=1.0, seed=seed, eos_ids=[])
    times += [time.perf_counter() for event in batch if event.index == 0 and event.token_ids]
    return times, [list(done.token_ids) for done in batch.results()]


def _counters(client: Client) -> dict[str, float]:
    time.sleep(PUBLISHED_S)
    stages = client.stats().stages
    counters = {**stages["loader"].counters, **stages["compute"].counters}
    return counters | {f"busy_{name}_ns": stage.busy_ns for name, stage in stages.items()}


def _facts(grown: dict[str, float], case: Case, times: list[float]) -> dict[str, float]:
    generated, elapsed_s = len(case.prompts) * case.steps, times[-1] - times[0]
    each_bytes = grown["bytes"] / max(grown["loads"], 1)
    busy = {name.removesuffix("_ns"): value / 1e9 / elapsed_s for name, value in grown.items() if "busy_" in name}
    return busy | {
        "hit_ratio": grown["hits"] / max(grown["hits"] + grown["misses"], 1),
        "bytes_per_token": grown["bytes"] / generated,
        "wasted_bytes_per_token": grown["wasted"] * each_bytes / generated,
        "forecast_precision": grown["useful"] / max(grown["useful"] + grown["wasted"], 1),
        "forecast_recall": (grown["useful"] + grown["promoted"]) / max(grown["loads"], 1),
        "stall_share": grown["stall_ns"] / 1e9 / elapsed_s,
    }


if __name__ == "__main__":
    main()
