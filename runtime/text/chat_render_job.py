"""Jobs and replies of the process that renders chat templates, and their frames: a content behind its length."""

from __future__ import annotations

from typing import IO, Any

import msgspec

Message = dict[str, Any]


class RenderJob(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to render. All values are plain JSON."""

    template: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    values: dict[str, Any] = {}
    """Other variables of the template: special tokens, and what the caller sets."""


class RenderReply(msgspec.Struct, frozen=True):
    """The rendered text, or the error of the template."""

    text: str = ""
    error: str | None = None


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Return the next frame; None at the end of the stream."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    length = int.from_bytes(header, "big")
    content = stream.read(length)
    return content if len(content) == length else None


def write_frame(stream: IO[bytes], content: bytes) -> None:
    """Write a frame. Raises BrokenPipeError if its reader has ended."""
    stream.write(len(content).to_bytes(4, "big"))
    stream.write(content)
    stream.flush()
