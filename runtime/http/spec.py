"""Messages of the command to the HTTP server, lines of JSON on its standard input: first `FrontSpec`, then the others.

The end of the input asks the server to end. Keys never stand on a command line, where every user of the machine sees
them.
"""

from __future__ import annotations

import msgspec

from ...ipc.stage.logs import LogSpec

MAX_BODY_BYTES = 32 << 20
SMALL_BODY_BYTES = 64 << 10
"""Size up to which a body always has room: the connections bound their number."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what a client may take."""

    body_bytes: int = MAX_BODY_BYTES
    header_bytes: int = 64 << 10
    header_timeout_s: float = 20.0
    """Time for the headers of a request, from the connection or the first byte."""
    body_timeout_s: float = 120.0
    bodies_bytes: int = 8 * MAX_BODY_BYTES
    """Size of all bodies that are received or wait to be read, without those of up to `SMALL_BODY_BYTES`."""
    write_timeout_s: float = 60.0
    """Time in which a client must read what waits for it."""
    idle_timeout_s: float = 75.0
    """Time for the next request on a connection."""
    connections: int = 4096
    ping_s: float = 15.0
    """Silence of a stream after which a comment is sent."""
    grace_s: float = 5.0
    """Time for running requests when the server ends."""


class FrontSpec(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The server: its listening socket, keys, names of the model and limits."""

    fd: int
    names: list[str]
    keys: list[str] = []
    default_max_tokens: int
    own_settings: bool = True
    limits: Limits = Limits()
    log: LogSpec = LogSpec()


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Progress of the start of the engine."""

    phase: str
    done: int
    total: int

    @property
    def percent(self) -> float:
        """Return how much of the phase is done, from 0 to 100."""
        return round(100 * self.done / self.total, 1) if self.total else 0.0


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The engine is ready at this address."""

    address: str


Update = Loading | Serving
_UPDATES: msgspec.json.Decoder[Update] = msgspec.json.Decoder(Update)
_SPEC: msgspec.json.Decoder[FrontSpec] = msgspec.json.Decoder(FrontSpec)


def to_line(message: FrontSpec | Update) -> bytes:
    """Return the message as a line."""
    return msgspec.json.encode(message) + b"\n"


def read_spec(line: bytes) -> FrontSpec:
    """Return the first message."""
    return _SPEC.decode(line)


def read_update(line: bytes) -> Update:
    """Return a later message."""
    return _UPDATES.decode(line)
