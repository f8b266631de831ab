"""Compare the predictive cache with LRU on a link on which LRU's loads take half of the compute time (widened model).

python -m expertflow.benchmarks.cache --out docs/results/cache.json

Two units of two rows, slots for about 1.4 times the experts that a layer of a step needs. First LRU alone, with memory
as the link, says how long computing takes and how much is loaded; from that follows the link's rate. Then every
contender decodes the same sequences over a link of that rate, emulated: real copies between shared memories, held to
it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expertflow import Client, Config, Supervisor

from .counters import read_counters, subtract_counters
from .models import held_out_prompts, widened
from .report import show_table, write_json

CONTENDERS: dict[str, dict[str, object]] = {
    "LRU, pool": {"preset": "on-demand"},
    "LRU a layer (Cache-MoE)": {"preset": "cache-moe"},
    "hints only": {"preset": "cpu-disk", "predictor": "none"},
    "forecasts only": {"preset": "cpu-disk", "hints": "off"},
    "hints and forecasts": {"preset": "cpu-disk"},
    "hints and forecasts, token table": {"preset": "cpu-disk", "predictor": "table"},
}
WARM_UP = 1
"""Blocks that fill slots and let sources prove themselves."""


@dataclass
class Figures:
    """Hold all measured blocks of one contender."""

    contender: str
    resident: float
    """Share of the experts that layers needed which were there when the layer began."""
    loads_a_step: float
    union: float
    """Experts needed, a layer of a step."""
    compute_ms: float
    """Time of a step, without waiting."""
    stall_ms: float
    useful: float
    wasted: float
    """Prefetches a step."""
    tokens_per_s: float


class Bench:
    """Run contenders on the same sequences and options."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._rows, self._tokens, self._blocks = arguments.rows, arguments.tokens, arguments.blocks
        self._shared = {
            "model": widened(),
            "tier": "host",
            "expert_memory": arguments.share,
            "batch_size": arguments.rows,
            "units": "two",
            "grouping": "off",
            "prediction": "on",
        }

    def run(self, contender: str, options: dict[str, object], link_rate: str) -> Figures:
        """Run a fresh engine on the sequences that every contender gets."""
        preset = str(options["preset"])
        own = {name: value for name, value in options.items() if name != "preset"}
        config = Config.load(preset, **(self._shared | own | {"link_rate": link_rate}))
        with Supervisor(config) as engine, Client(engine.address) as client:
            for block in range(WARM_UP):
                self._decode(client, block)
            before, rates = read_counters(client), []
            for block in range(WARM_UP, WARM_UP + self._blocks):
                rates.append(self._decode(client, block))
            return _figures(contender, before, read_counters(client), rates, engine_layers(client))

    def _decode(self, client: Client, block: int) -> float:
        """Return tokens a second of one block; tokens are drawn, so that text does not repeat itself."""
        prompts = held_out_prompts(self._rows * (block + 1), characters=60)[-self._rows :]
        started = time.perf_counter()
        client.generate(prompts, max_new_tokens=self._tokens, temperature=1.0, seed=1000 * block, eos_ids=[])
        return self._rows * self._tokens / (time.perf_counter() - started)


def engine_layers(client: Client) -> int:
    return int(client.stats().facts["loader"]["layers"])


def _figures(
    contender: str, before: dict[str, float], after: dict[str, float], rates: list[float], layers: int
) -> Figures:
    grown = subtract_counters(after, before)
    steps, needed = grown["steps"], grown["hits"] + grown["misses"]
    return Figures(
        contender,
        resident=round(grown["hits"] / needed, 3),
        loads_a_step=round(grown["loads"] / steps, 2),
        union=round(needed / steps / layers, 2),
        compute_ms=round((grown["busy_ns"] - grown["stall_ns"]) / steps / 1e6, 2),
        stall_ms=round(grown["stall_ns"] / steps / 1e6, 2),
        useful=round(grown["useful"] / steps, 2),
        wasted=round(grown["wasted"] / steps, 2),
        tokens_per_s=round(statistics.median(rates), 2),
    )


def link_rate_for(lru: Figures, expert_bytes: int) -> int:
    """Return the bytes a second at which LRU's loads take half of the compute time."""
    return round(lru.loads_a_step * expert_bytes / (0.5 * lru.compute_ms / 1e3))


def main() -> None:
    arguments = parse_arguments()
    bench = Bench(arguments)
    lru = bench.run("LRU, pool, link as fast as memory", CONTENDERS["LRU, pool"], "")
    rate = arguments.link_rate or str(link_rate_for(lru, _expert_bytes()))
    rows = [bench.run(name, CONTENDERS[name], rate) for name in arguments.contenders]
    show_table(f"link {float(rate) / 1e9:.2f} GB/s, emulated", _shown(rows))
    write_json(
        arguments.out, {"link_rate_bytes_per_s": rate, "first": asdict(lru), "rows": [asdict(row) for row in rows]}
    )


def _expert_bytes() -> int:
    from expertflow.workers.surveyor.surveyor import survey_checkpoint

    return survey_checkpoint(str(widened())).stride_bytes


def _shown(rows: list[Figures]) -> list[dict[str, Any]]:
    """Add to each row its loads over those of LRU."""
    base = next((row for row in rows if row.contender.startswith("LRU, pool")), rows[0])
    return [asdict(row) | {"loads to LRU, pool": f"{row.loads_a_step / base.loads_a_step:.3f}"} for row in rows]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4, help="sequences in all, half of them in each unit")
    parser.add_argument("--share", default="31.3%", help="expert memory; 31.3 %% are 10 of 32 experts a layer")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of a sequence in a block")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--link-rate", default="", help="bytes a second; empty: what the first run says")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
