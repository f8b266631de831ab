"""A proxy in a thread before a fake engine, as its process would run it."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
from expertflow.ipc.transport.sockets import Context
from expertflow.runtime.remote.door import Door
from expertflow.runtime.remote.keys import AllowedKeys, read_server_pair
from expertflow.runtime.remote.proxy import COUNTS, Proxy
from expertflow.runtime.service.listening import bind, url_of


class LocalProxy:
    """A context manager."""

    def __init__(self, keys: Path, run_dir: str, max_clients: int = 1000) -> None:
        self._keys, self.run_dir, self._max_clients = keys, run_dir, max_clients
        self.socket: socket.socket = bind("127.0.0.1", 0)
        self.socket.setblocking(False)
        self.address = url_of(self.socket, "tcp://")
        self.port = int(self.socket.getsockname()[1])
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> LocalProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(20)
        self.socket.close()
        assert not self._errors, self._errors

    @property
    def counts(self) -> dict[str, Any]:
        """What the proxy has written; empty before."""
        try:
            return json.loads(Path(self.run_dir, COUNTS).read_text())
        except FileNotFoundError:
            return {}

    def _run(self) -> None:
        context: Context = zmq.Context()
        door = Door(context, read_server_pair(self._keys), AllowedKeys(self._keys), self.socket)
        proxy = Proxy(context, door, self.run_dir, self._max_clients, tick_s=0.1)
        try:
            while not self._stopping.is_set():
                proxy.step(0.05)
        except BaseException as error:  # noqa: BLE001 - shown to the test at its end
            self._errors.append(error)
        finally:
            proxy.close()
            context.destroy(linger=0)
