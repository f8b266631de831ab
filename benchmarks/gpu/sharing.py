"""The probe of two processes: one memfd, both register it, both time copies into memory of their own, alone and at
once, beside a plain pinned tensor."""

from __future__ import annotations

from typing import Any

from expertflow.ipc.shared.memory import Arena

from .other import OtherProcess, pattern, same
from .rates import in_order, rate
from .under_test import UnderTest


def measure_sharing(test: UnderTest) -> dict[str, Any]:
    """Bytes a second. `holds`: both could register it, and what both copied is what it holds."""
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("sharing", count_bytes)
    arena.array[:] = pattern(count_bytes)
    store, own = device.adopt(arena.array), device.allocate(count_bytes)
    piece = test.scale.pieces_bytes[-1]
    plain, copy = (in_order(device, own, source, piece) for source in (test.pinned(count_bytes), store))
    with OtherProcess(test, arena) as other:
        found = {
            "plain pinned tensor": rate(test, device, count_bytes, plain),
            "this process": rate(test, device, count_bytes, copy),
            "the other process": other.ask("rate"),
        }
        other.begin("rate")
        found["this process, both at once"] = rate(test, device, count_bytes, copy)
        found["the other process, both at once"] = other.answer()
        holds = device.pinned and other.pinned and same(own, store) and other.ask("right")
    device.close()
    arena.close()
    return {"holds": holds, "bytes_per_s": found}
