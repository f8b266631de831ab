"""Bytes to messages, for bytes that anybody may have sent."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

M = TypeVar("M")


class Unreadable(NamedTuple):
    """Something that is no message of its socket; `reason` is for people."""

    reason: str


def decode(decoder: msgspec.msgpack.Decoder[M], payload: bytes) -> M | Unreadable:
    """The message, or the reason why these bytes are none. Broken text and deep nesting have errors of their own."""
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(str(error) or type(error).__name__)
