"""Who copies into the slots of compute: compute itself, as ExpertFlow does it, or another process (the loader) to which
they were handed through CUDA IPC."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from expertflow.ipc.shared.memory import Arena

from .other import OtherProcess, copy_one, pattern, same
from .rates import in_order, rate
from .under_test import UnderTest


def measure_ipc(test: UnderTest) -> dict[str, Any]:
    """Bytes a second, and microseconds from an order to its end. `holds`: what the other process copied arrived."""
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("ipc", count_bytes)
    arena.array[:] = pattern(count_bytes)
    store, slots = device.adopt(arena.array), device.allocate(count_bytes)
    copy, free_bytes = in_order(device, slots, store, test.scale.pieces_bytes[-1]), device.free_bytes()
    with OtherProcess(test, arena, slots) as other:
        context_bytes = free_bytes - device.free_bytes()
        slots.zero_()
        rates = {"the loader, through IPC": other.ask("rate")}
        holds = same(slots, store)
        rates["compute itself"] = rate(test, device, count_bytes, copy)
        orders = test.scale.orders
        waits = {
            "compute itself": _median_us(orders, lambda: copy_one(test, device, slots, store)),
            "the loader, through IPC": _median_us(orders, lambda: other.ask("one")),
        }
    device.close()
    arena.close()
    return {"holds": holds, "bytes_per_s": rates, "order_to_done_us": waits, "context_bytes": context_bytes}


def _median_us(count: int, run: Callable[[], Any]) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)
