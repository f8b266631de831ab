"""One line of a batch file as a request: checked, or the fault that keeps it from running."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from ...workers.scheduler.validation import SEED_LIMIT
from .line_reader import MAX_LINE_BYTES

COMPLETIONS, CHAT_COMPLETIONS = "/v1/completions", "/v1/chat/completions"
URLS = (COMPLETIONS, CHAT_COMPLETIONS)
MAX_ID_CHARACTERS = 512

NOT_JSON, BAD_LINE, BAD_ID, DUPLICATE_ID = "invalid_json", "invalid_line", "invalid_custom_id", "duplicate_custom_id"
BAD_METHOD, BAD_URL = "invalid_method", "invalid_url"


class RequestLine(NamedTuple):
    """A request: its id in the file, the endpoint, and the body in JSON."""

    custom_id: str
    url: str
    body: bytes


class LineFault(NamedTuple):
    """Reason why a line is no request. `custom_id` is None if the line has none that can be read."""

    code: str
    message: str
    custom_id: str | None = None


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    custom_id: Any = None


def parse_line(content: bytes | None) -> RequestLine | LineFault:
    """Return the request in a line, or its fault. None stands for a line of more than `MAX_LINE_BYTES`."""
    if content is None:
        return LineFault(BAD_LINE, f"the line has more than {MAX_LINE_BYTES:,} bytes")
    try:
        line = msgspec.json.decode(content, type=_Line)
    except msgspec.ValidationError as error:
        return LineFault(BAD_LINE, f"the line is not a request: {error}", _readable_id(content))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return LineFault(NOT_JSON, f"the line is not JSON: {error}")
    return _fault_of(line) or RequestLine(line.custom_id, line.url, bytes(line.body))


def seed_of(custom_id: str) -> int:
    """Return the seed of a request that names none: a function of its id, so that a resumed run draws the same."""
    return digest_of(custom_id.encode()) % SEED_LIMIT


def digest_of(content: bytes) -> int:
    """Return 64 bits of the content's BLAKE2b digest."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _fault_of(line: _Line) -> LineFault | None:
    if not line.custom_id or len(line.custom_id) > MAX_ID_CHARACTERS:
        what = f"custom_id must have 1 to {MAX_ID_CHARACTERS} characters, not {len(line.custom_id):,}"
        return LineFault(BAD_ID, what, line.custom_id[:MAX_ID_CHARACTERS] or None)
    if line.method != "POST":
        return LineFault(BAD_METHOD, f"method must be POST, not {line.method[:20]!r}", line.custom_id)
    if line.url not in URLS:
        return LineFault(BAD_URL, f"url must be {' or '.join(URLS)}, not {line.url[:80]!r}", line.custom_id)
    if not bytes(line.body).startswith(b"{"):
        return LineFault(BAD_LINE, "body must be an object", line.custom_id)
    return None


def _readable_id(content: bytes) -> str | None:
    try:
        custom_id = msgspec.json.decode(content, type=_Named).custom_id
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return custom_id[:MAX_ID_CHARACTERS] if isinstance(custom_id, str) else None
