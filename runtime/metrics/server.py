"""The metrics server as the command `serve` sees it: a socket and a process beside the engine (`--metrics`).

A process of its own speaks the public protocol, so that no scraper takes time from the supervisor's watchdog.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

from ..service.listening import bind, read_address, url_of

OPTION = "--metrics"
STOP_S = 3.0


class MetricsServer:
    """A context manager: the socket is open from `__init__` on, the process runs from `serve` on."""

    def __init__(self, where: str) -> None:
        """Bind `[HOST:]PORT`. Raises UsageError for an address that cannot be bound."""
        self._socket = bind(*read_address(where, OPTION), OPTION)
        self.url = f"{url_of(self._socket)}/metrics"
        self._address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def serve(self, address: str) -> None:
        """Answer scrapes with the metrics of the engine at this address."""
        self._address = address
        fd = self._socket.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "expertflow.runtime.metrics", str(os.getpid()), str(fd), address],
            stdin=subprocess.DEVNULL,
            pass_fds=[fd],
            process_group=0,  # Ctrl-C reaches the command alone
        )

    def check(self) -> None:
        """Start the server again if it has ended: nobody's work depends on it."""
        if self._process is not None and self._process.poll() is not None:
            logging.getLogger(__name__).warning("the metrics server ended: it is started again")
            self.serve(self._address)

    def stop(self) -> None:
        """End the server. Idempotent."""
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
