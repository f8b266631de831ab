"""What is measured: ExpertFlow in all its processes, and resident transformers. Both run the same tokens.

Figures are of one run; compare ratios inside one run, never times of different ones.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from expertflow import Client, Config, Supervisor

WARM_STEPS = 4


@dataclass
class Figures:
    """Of one contender at one batch size."""

    contender: str
    batch: int
    decode_ms: float = 0.0
    """Median of a decode step, seen by the user (client included for ExpertFlow)."""
    prefill_tokens_per_s: float = 0.0
    pss_peak_bytes: int = 0
    hit_share: float | None = None
    loads_per_step: float | None = None
    stall_share: float | None = None
    tokens: list[list[int]] = field(default_factory=list)
    """What was generated, to be forced on the others."""


def measure_expertflow(
    name: str, folder: Path, prompts: Sequence[Sequence[int]], steps: int, long_prompt: list[int], **overrides: object
) -> Figures:
    """ExpertFlow on `prompts` together: sampled tokens (a random model decoding greedily repeats one)."""
    batch = len(prompts)
    options = {"batch_size": max(batch, 1), "kv_memory": "2GiB", **overrides}
    figures = Figures(name, batch)
    with Supervisor(Config.load("cpu-disk", model=str(folder), **options)) as engine, Client(engine.address) as client:
        peak = _PeakPss(client_address=str(engine.address))
        _fill(client, prompts)
        before = _counters(client)
        times, figures.tokens = _decode(client, prompts, steps)
        after = _counters(client)
        figures.decode_ms = 1e3 * statistics.median(
            b - a for a, b in zip(times[WARM_STEPS:], times[WARM_STEPS + 1 :], strict=False)
        )
        _add_residency(figures, before, after, times, steps)
        figures.prefill_tokens_per_s = _prefill_rate(client, long_prompt)
        figures.pss_peak_bytes = peak.stop()
    return figures


def _fill(client: Client, prompts: Sequence[Sequence[int]]) -> None:
    """Bring the engine to its steady state: slots full, table warm, threads started."""
    for round_number in range(2):
        client.generate(
            [list(prompt) for prompt in prompts],
            max_new_tokens=12,
            temperature=1.0,
            seed=1000 + round_number,
            eos_ids=[],
        )
    time.sleep(1.5)


def _decode(client: Client, prompts: Sequence[Sequence[int]], steps: int) -> tuple[list[float], list[list[int]]]:
    batch = client.submit(
        [list(prompt) for prompt in prompts], max_new_tokens=steps, temperature=1.0, seed=7, eos_ids=[]
    )
    times = [time.perf_counter() for event in batch if event.index == 0 and event.token_ids]
    return times, [list(done.token_ids) for done in batch.results()]


def _counters(client: Client) -> dict[str, float]:
    time.sleep(1.2)
    snapshot = client.stats()
    return {**snapshot.stages["loader"].counters, **snapshot.stages["compute"].counters}


def _add_residency(
    figures: Figures, before: dict[str, float], after: dict[str, float], times: list[float], steps: int
) -> None:
    grown = {name: after[name] - before.get(name, 0) for name in ("hits", "misses", "loads", "stall_ns")}
    figures.hit_share = grown["hits"] / max(grown["hits"] + grown["misses"], 1)
    figures.loads_per_step = grown["loads"] / steps
    figures.stall_share = grown["stall_ns"] / 1e9 / (times[-1] - times[0])


def _prefill_rate(client: Client, prompt: list[int]) -> float:
    rates = []
    for start in range(3):
        varied = prompt[start:] + prompt[:start]
        done = client.generate([varied], max_new_tokens=1, eos_ids=[])[0]
        rates.append(len(prompt) / (done.timings.total_ns / 1e9))
    return statistics.median(rates)


class _PeakPss:
    """The largest sum of all processes' proportional memory, asked for once a second."""

    def __init__(self, client_address: str) -> None:
        self._address, self._peak_bytes, self._stopped = client_address, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._peak_bytes

    def _watch(self) -> None:
        with Client(self._address) as client:
            while not self._stopped.wait(2.0):
                pss = client.stats().pss_bytes
                # The supervisor lives in this process, with the benchmark around it; it is counted all the same.
                self._peak_bytes = max(self._peak_bytes, sum(pss.values()))


def measure_transformers(
    backend: str, folder: Path, forced: Figures, prompts: Sequence[Sequence[int]], long_prompt: list[int]
) -> Figures:
    """Resident transformers with the tokens that `forced` generated, in a process of its own."""
    order = {
        "backend": backend,
        "folder": str(folder),
        "prompts": [list(each) for each in prompts],
        "tokens": forced.tokens,
        "long": long_prompt,
    }
    script = Path(__file__).with_name("transformers_resident.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(order), capture_output=True, text=True, check=True
    )
    return Figures(f"transformers {backend}", len(prompts), **json.loads(done.stdout.splitlines()[-1]))


def as_row(figures: Figures) -> dict[str, object]:
    """Figures without the tokens, for a table or a file."""
    row = asdict(figures)
    del row["tokens"]
    return row
