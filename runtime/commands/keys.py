"""`expertflow keys`: keys of a server over TCP, and of its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...errors import UsageError
from ..command_line.base import DONE, Command
from ..monitor.tables import result_console
from ..remote.keys import allow_key, new_client_keys, new_keys

Action = Literal["new", "client", "allow"]


@dataclass(frozen=True, kw_only=True)
class Keys(Command):
    """Make keys for an engine over TCP (docs/how-to/serve-over-tcp.md).

    new FOLDER: keys of a server in FOLDER/server, and of a first client in FOLDER/client.
    client FOLDER SERVER.key: keys of a client, on its own machine.
    allow FOLDER CLIENT.key: let that client in at the server with the keys in FOLDER.
    """

    action: Annotated[tyro.conf.Positional[Action], tyro.conf.arg(metavar="new|client|allow")]
    """Action, one of the three above."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the keys."""
    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None
    """Public key of the other side."""
    name: str = ""
    """With allow: name of the client; without it that of the file."""

    def run(self) -> int:
        console = result_console()
        match self.action:
            case "new":
                server, client = new_keys(self.folder)
                console.print(f"Server: expertflow serve --address tcp://HOST:PORT --keys {server}", soft_wrap=True)
                console.print(f"Client: copy {client} to its machine; --keys {client.name}", soft_wrap=True)
            case "client":
                public = new_client_keys(self.folder, self._other("the server's public key"))
                console.print(f"At the server: expertflow keys allow FOLDER {public}", soft_wrap=True)
            case "allow":
                file = self._other("the client's public key")
                console.print(f"Allowed: {allow_key(self.folder, file, self.name or file.stem)}", soft_wrap=True)
        return DONE

    def _other(self, what: str) -> Path:
        if self.file is None:
            raise UsageError(f"needs the file of {what}", f"keys {self.action}", "Name it behind the folder")
        return self.file
