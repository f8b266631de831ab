"""Specification of the proxy's process, on its command line: nothing in it is secret."""

from __future__ import annotations

import msgspec

from ...ipc.stage.logs import LogSpec


class ProxySpec(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy: its listening socket, the folder of its keys, and the engine."""

    parent: int
    """Process id of the command, with which the proxy ends."""
    fd: int
    keys: str
    run_dir: str
    log: LogSpec = LogSpec()

    def to_argument(self) -> str:
        """Return the specification as text."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_argument(cls, text: str) -> ProxySpec:
        """Return the specification that a text holds."""
        return msgspec.json.decode(text, type=cls)
