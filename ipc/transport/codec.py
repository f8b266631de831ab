"""Decoding of bytes from untrusted senders."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from ...configs.decoding import UNDECODABLE

M = TypeVar("M")


class Unreadable(NamedTuple):
    """Bytes that are no message of their socket; `reason` is for people."""

    reason: str


def decode(decoder: msgspec.msgpack.Decoder[M], payload: bytes) -> M | Unreadable:
    """Return the message, or the reason why it cannot be decoded; invalid UTF-8 and deep nesting included."""
    try:
        return decoder.decode(payload)
    except UNDECODABLE as error:
        return Unreadable(str(error) or type(error).__name__)
