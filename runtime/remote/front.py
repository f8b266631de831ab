"""The proxy as the command `serve` sees it: a socket, and a process beside the engine.

The socket belongs to the command. So a wrong port is refused before the engine starts, nobody can take the port while a
dead proxy is replaced, and clients that connect meanwhile wait.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from ...errors import UsageError
from ...ipc.stage.logs import LogSpec
from ..service.listening import bind, read_address, url_of
from .curve import SCHEME
from .keys import AllowedKeys, read_server_pair
from .spec import ProxySpec

OPTION = "--address"
STOP_S = 3.0
_NO_KEYS = "Make keys with: expertflow keys new FOLDER; then give --keys FOLDER/server"


class RemoteFront:
    """A context manager: the socket is open from `__init__` on, the process runs from `serve` on."""

    def __init__(self, address: str, keys: Path | None, log: LogSpec) -> None:
        """Bind the socket. Raises UsageError for an address that cannot be bound, and without usable keys."""
        if keys is None:
            raise UsageError("needs keys: over TCP only clients with an allowed key are let in", OPTION, _NO_KEYS)
        read_server_pair(keys)
        if not len(AllowedKeys(keys)):
            raise UsageError("allows no client's key", str(keys), "Let one in: expertflow keys allow FOLDER FILE")
        self._keys, self._log = keys, log
        self._socket = bind(*read_address(address.removeprefix(SCHEME), OPTION), OPTION)
        self._socket.setblocking(False)
        self.address = url_of(self._socket, SCHEME)
        self._run_dir = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Return the process id of the proxy that runs now."""
        return self._process.pid if self._process else None

    def serve(self, run_dir: str) -> None:
        """Let remote clients reach the engine at this run directory."""
        self._run_dir = run_dir
        fd, log_fd = self._socket.fileno(), self._log.fd
        spec = ProxySpec(parent=os.getpid(), fd=fd, keys=str(self._keys), run_dir=run_dir, log=self._log)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "expertflow.runtime.remote", spec.to_argument()],
            stdin=subprocess.DEVNULL,
            pass_fds=[fd, *([log_fd] if log_fd >= 0 else [])],
            process_group=0,  # Ctrl-C reaches the command alone
        )

    def check(self) -> None:
        """Start the proxy again if it has ended: its clients connect again, and lose nothing."""
        if self._process is not None and self._process.poll() is not None:
            logging.getLogger(__name__).warning("the proxy for remote clients ended: it is started again")
            self.serve(self._run_dir)

    def stop(self) -> None:
        """End the proxy. Idempotent."""
        self._socket.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
