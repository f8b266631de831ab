"""Options of the HTTP server: where it listens, and the keys it asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UsageError
from ...ipc.stage.logs import LogSpec
from ..openai.model import DEFAULT_MAX_TOKENS
from ..service.listening import is_loopback
from .spec import FrontSpec, Limits

KEY_VARIABLE = "EXPERTFLOW_API_KEY"


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the HTTP server."""

    host: str
    port: int
    names: list[str]
    """Names of the model; answers have the first."""
    keys: list[str] = field(default_factory=list)
    """Keys of which clients send one as `Authorization: Bearer KEY`; none: everyone is let in."""
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    own_settings: bool = True
    limits: Limits = field(default_factory=Limits)
    log: LogSpec = field(default_factory=LogSpec)

    @property
    def is_open(self) -> bool:
        """Return whether other machines may use the server without a key."""
        return not self.keys and not is_loopback(self.host)

    def to_spec(self, fd: int) -> FrontSpec:
        """Return what the process is told; `fd` is its listening socket."""
        return FrontSpec(
            fd=fd,
            names=self.names,
            keys=self.keys,
            default_max_tokens=self.default_max_tokens,
            own_settings=self.own_settings,
            limits=self.limits,
            log=self.log,
        )


def read_keys(given: list[str], file: Path | None) -> list[str]:
    """Return the keys of the option, of the file (one a line, `#` begins a comment) and of the environment.

    Raises UsageError for a file that cannot be read, and for a key that no header can carry.
    """
    keys = [*given, *_file_keys(file), *os.environ.get(KEY_VARIABLE, "").split()]
    for key in keys:
        if not (key.isascii() and key.isprintable()) or " " in key or not key:
            raise UsageError("must be printable ASCII without spaces", "--api-key", "Choose letters and digits")
    return list(dict.fromkeys(keys))


def _file_keys(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", str(file), "Give a file with a key a line") from error
    keys = [line.partition("#")[0].strip() for line in lines]
    if not any(keys):
        raise UsageError("has no key", str(file), "Write a key on a line of its own")
    return [key for key in keys if key]
