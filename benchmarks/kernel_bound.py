"""How close to its bounds does a decode step's arithmetic come: experts, linear layers and attention of model R?

python -m expertflow.benchmarks.kernel_bound --isa avx2 --out docs/results/kernel-bound.json

One thread, counted in its own processor time, so that other work on the machine hardly matters. Weights lie in memory,
not in a cache. The bounds are this thread's rate of reading memory and of a float32 product of the library.

--threads 2 adds how much faster these become with two threads, in wall time: leave the machine alone for it. Two cores
of a virtual machine may be two threads of one core, which share its units.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .machine import RESTRICTED, restrict_instructions
from .models import MODEL_R
from .report import show_table, write_json

REPEATS = 7
GAIN_TURNS = 3
LAYERS = 3
"""Layers of weights that are used in turn, 200 MB each: more than a cache holds."""
DEVIATION = 0.02
READ_BYTES = 400_000_000
PRODUCT = (512, 1024, 1024)
POSITIONS = 57
"""Positions of each row's keys and values: a prompt of 32 tokens and the middle of 50 new ones."""
TOP_K, EXPERTS = MODEL_R["num_experts_per_tok"] or 0, MODEL_R["num_experts"] or 0
HEADS = MODEL_R["num_attention_heads"] or 0
WIDTH, INNER = MODEL_R["hidden_size"] or 0, MODEL_R["intermediate_size"] or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=RESTRICTED, default="native", help="instructions that libraries may use")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128], help="rows of a step")
    parser.add_argument("--threads", type=int, default=1, help="measure the gain of so many threads as well")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    restrict_instructions(arguments.isa)
    bounds = measure_bounds()
    show_table("one thread", [bounds], left=0)
    rows = measure_rows(arguments.batches)
    show_table(f"a layer of model R, ms of one thread, {arguments.isa}", rows)
    gains = measure_gains(arguments.threads, arguments.batches) if arguments.threads > 1 else []
    if gains:
        show_table(f"ms of wall time, and how much faster {arguments.threads} threads are than one", gains)
    write_json(arguments.out, {"isa": arguments.isa, "bounds": bounds, "rows": rows, "gains": gains})


def measure_bounds() -> dict[str, float]:
    """Return the rates of reading memory and of a float32 product."""
    import torch

    torch.set_num_threads(1)
    numbers = torch.zeros(READ_BYTES // 4)
    rows, width, out = PRODUCT
    left, right = torch.randn(rows, width), torch.randn(width, out)
    return {
        "read_gb_s": round(READ_BYTES / _best_ms(lambda turn: numbers.sum()) / 1e6, 1),
        "float32_gmac_s": round(rows * width * out / _best_ms(lambda turn: left @ right) / 1e6, 1),
    }


def measure_gains(threads: int, batches: list[int]) -> list[dict[str, Any]]:
    """Return for each work its milliseconds with one and with `threads` threads, in wall time."""
    import torch

    numbers, (rows, width, out) = torch.zeros(READ_BYTES // 4), PRODUCT
    left, right = torch.randn(rows, width), torch.randn(width, out)
    works: dict[str, Callable[[int], object]] = {
        "reading memory": lambda turn: numbers.sum(),
        "float32 product": lambda turn: left @ right,
    }
    layers = [[_expert() for _ in range(EXPERTS)] for _ in range(LAYERS)]
    for batch in batches:
        each, used = _rows_an_expert(batch)
        works[f"experts, batch {batch}"] = _experts_call(each, [layer[:used] for layer in layers])
    return [_gain(name, work, threads) for name, work in works.items()]


def _gain(name: str, work: Callable[[int], object], threads: int) -> dict[str, Any]:
    """Return the least milliseconds of one and of several threads, in turns."""
    import torch

    best_ms = {1: math.inf, threads: math.inf}
    for _ in range(GAIN_TURNS):
        for count in best_ms:
            torch.set_num_threads(count)
            best_ms[count] = min(best_ms[count], _best_ms(work, time.perf_counter))
    one, several = best_ms.values()
    return {"work": name, "one_ms": round(one, 1), "several_ms": round(several, 1), "gain": round(one / several, 2)}


def measure_rows(batches: list[int]) -> list[dict[str, Any]]:
    """Return a row for each batch size: as many rows for each expert as it has on average, and at least one."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [[_expert() for _ in range(EXPERTS)] for _ in range(LAYERS)]
    linears = [_weight(WIDTH, WIDTH) for _ in range(4 * LAYERS)]
    return [_row(batch, layers, linears) for batch in batches]


def _row(batch: int, layers: list[Any], linears: list[Any]) -> dict[str, Any]:
    each, used = _rows_an_expert(batch)
    experts_ms = _experts_ms(each, [layer[:used] for layer in layers])
    weights = used * 3 * WIDTH * INNER
    return {
        "rows": batch,
        "rows_an_expert": each,
        "experts_ms": round(experts_ms, 1),
        "experts_gb_s": round(2 * weights / experts_ms / 1e6, 1),
        "experts_gmac_s": round(each * weights / experts_ms / 1e6, 1),
        "linear_ms": round(_linear_ms(batch, linears), 1),
        "attention_ms": round(_attention_ms(batch), 1),
    }


def _rows_an_expert(batch: int) -> tuple[int, int]:
    """Return the rows of each expert on average, at least one, and the number of experts used."""
    return max(1, batch * TOP_K // EXPERTS), min(EXPERTS, batch * TOP_K)


def _experts_ms(each: int, layers: list[list[dict[str, Any]]]) -> float:
    """Return the milliseconds of one call for all experts of a layer, `each` rows an expert."""
    return _best_ms(_experts_call(each, layers))


def _experts_call(each: int, layers: list[list[dict[str, Any]]]) -> Callable[[int], object]:
    """Return the call for all experts of the layer of a turn."""
    import torch

    kernels = _kernels()
    count = len(layers[0])
    rows = torch.randn(each * count, WIDTH).to(torch.bfloat16)
    products = torch.empty_like(rows)
    bounds = [(each * expert, each * (expert + 1)) for expert in range(count)]
    return lambda turn: kernels.experts("silu", layers[turn % len(layers)], bounds, rows, products)


def _linear_ms(batch: int, weights: list[Any]) -> float:
    """Return the milliseconds of a layer's four linear layers."""
    import torch

    kernels, rows = _kernels(), torch.randn(batch, WIDTH).to(torch.bfloat16)
    layers = len(weights) // 4
    return _best_ms(lambda turn: [kernels.linear(rows, weights[turn % layers * 4 + place]) for place in range(4)])


def _attention_ms(batch: int) -> float:
    """Return the milliseconds of the library's attention of one new token a row."""
    import torch

    shape = (batch, HEADS, POSITIONS, WIDTH // HEADS)
    keys, values = torch.randn(shape).to(torch.bfloat16), torch.randn(shape).to(torch.bfloat16)
    query, mask = keys[:, :, :1].clone(), torch.ones(batch, 1, 1, POSITIONS, dtype=torch.bool)
    attend = torch.nn.functional.scaled_dot_product_attention
    return _best_ms(lambda turn: attend(query, keys, values, attn_mask=mask))


def _kernels() -> Any:
    from expertflow.workers.kernels.native import NativeKernels, missing_reason

    kernels = NativeKernels.open()
    if kernels is None:
        raise SystemExit(f"no kernels: {missing_reason()}")
    return kernels


def _expert() -> dict[str, Any]:
    return {"gate_up_proj": _weight(2 * INNER, WIDTH), "down_proj": _weight(WIDTH, INNER)}


def _weight(out: int, width: int) -> Any:
    import torch

    return torch.empty(out, width, dtype=torch.bfloat16).normal_(0, DEVIATION)


def _best_ms(work: Callable[[int], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Return the least milliseconds, by default of this thread's processor time; the first turn is not counted."""
    work(0)
    times = []
    for turn in range(1, REPEATS + 1):
        begun_s = clock()
        work(turn)
        times.append(clock() - begun_s)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
