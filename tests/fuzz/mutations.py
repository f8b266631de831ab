"""Change inputs: single bytes, or values inside JSON and MessagePack, which single bytes hardly reach."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal

import msgpack

Form = Literal["bytes", "json", "packed"]
MAX_BYTES = 4096
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.5, 1e308, float("inf"),
    float("nan"), "", "a", "text", "\0", "é\U0001f600", "\ud800", "1", "{}", "[" * 9, "../x", "a" * 300, [], {}, [[]],
    [1, 2], ["a"], {"a": 1}, {"type": "text"}, {"": None}, {"__type": "AddedToken"}, b"", b"\0" * 9,
)  # fmt: skip
DEPTHS = (20, 64, 65, 330, 500, 990, 3000)
"""Levels of nesting, some of which are around the limits of parsers and of Python's stack."""


def mutate(data: bytes, form: Form, kept: int, rng: random.Random) -> bytes:
    """Return a changed input. The first `kept` bytes choose what follows and belong to no JSON or MessagePack."""
    if form == "bytes" or rng.random() < 0.25:
        return mutate_bytes(data, rng)
    begin = data[:kept] if rng.random() < 0.9 else bytes([rng.randrange(256)]) * kept
    try:
        changed = _CHANGES[form](data[kept:], rng)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return mutate_bytes(data, rng)
    return begin + changed


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few bytes replaced, removed, put in or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                del changed[place:]
            case 1:
                changed[place:place] = rng.randbytes(rng.choice((1, 1, 4, 8)))
            case 2:
                changed[place : place + rng.choice((1, 2, 8))] = b""
            case _:
                changed[place : place + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
    return bytes(changed[:MAX_BYTES])


def _change_json(data: bytes, rng: random.Random) -> bytes:
    value = mutate_value(json.loads(data), rng)
    if rng.random() < 0.03:
        return b"[" * rng.choice(DEPTHS) + json.dumps(value, default=repr).encode()
    return json.dumps(value, default=repr, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _change_packed(data: bytes, rng: random.Random) -> bytes:
    """Change one of several messages, or their order and number."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogatepass")
    unpacker.feed(data)
    messages = list(unpacker) or [None]
    place = rng.randrange(len(messages))
    match rng.randrange(8):
        case 0:
            messages.insert(rng.randrange(len(messages) + 1), messages[place])
        case 1:
            del messages[place]
        case _:
            messages[place] = mutate_value(messages[place], rng)
    packed = (msgpack.packb(each, use_bin_type=True, unicode_errors="surrogatepass") for each in messages)
    return b"".join(each for each in packed if each is not None)


_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {"json": _change_json, "packed": _change_packed}


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a value with one part of it changed, at any depth."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or rng.random() < 0.25:
        return _replacement(value, rng)
    key, changed = rng.choice(inside), value.copy()
    match rng.randrange(10):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[rng.choice(("a", "", "type", "\ud800", str(key) + "x"))] = changed.pop(key)
        case 1:
            changed = [*changed, *changed]
        case 2:
            changed[key] = changed[rng.choice(inside)]
        case _:
            changed[key] = mutate_value(value[key], rng)
    return changed


def _replacement(value: Any, rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return [value]
        case 1 if isinstance(value, int | float):
            return value + rng.choice((1, -1, 256, 2**16, 2**31))
        case 1:
            return {"a": value}
        case 2 if rng.random() < 0.3:
            return _nested(value, rng.choice(DEPTHS[:4]), rng.random() < 0.5)
        case _:
            return rng.choice(_VALUES)


def _nested(value: Any, depth: int, lists: bool) -> Any:
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value
