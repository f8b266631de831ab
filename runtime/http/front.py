"""The HTTP server as the command `serve` sees it: a socket, a process, and restarts of that process.

The socket belongs to the command. So a wrong port is refused before the engine starts, and clients that connect while
a dead server is replaced wait a moment instead of being refused.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections import deque
from types import TracebackType
from typing import Self

from ...errors import EngineError, UsageError
from ...ipc.messages import Progress
from ..engine.children import describe_exit
from ..service.listening import bind, url_of
from .options import HttpOptions
from .spec import Loading, Serving, Update, to_line

MODULES = ("starlette", "uvicorn", "httptools")
EXTRA = "Install the extra: pip install 'expertflow-runtime[serve]'"
MAX_RESTARTS, RESTART_WINDOW_S = 5, 60.0
STOP_MARGIN_S = 3.0
"""Seconds beyond the grace of running requests after which the process is killed."""


class HttpFront:
    """A context manager: the socket is open from `__init__` on, the process runs inside."""

    def __init__(self, options: HttpOptions) -> None:
        """Bind the socket. Raises UsageError without the extra, or for an address that cannot be bound."""
        require_extra()
        self._options = options
        self._socket = bind(options.host, options.port)
        self._process: subprocess.Popen[bytes] | None = None
        self._latest: Update = Loading("starting", 0, 1)
        self._restarts: deque[float] = deque()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the address for clients."""
        return url_of(self._socket)

    @property
    def pid(self) -> int | None:
        """Return the process id of the server that runs now."""
        return self._process.pid if self._process else None

    def on_progress(self, progress: Progress) -> None:
        """Show how far the engine's start is, at `/ready`."""
        self._tell(Loading(f"{progress.stage}: {progress.what}", progress.done, progress.total))

    def serve(self, address: str) -> None:
        """Answer requests with the engine at this address."""
        self._tell(Serving(address))

    def check(self) -> None:
        """Start the server again if it has ended. Raises EngineError if it ends again and again."""
        if self._process is None or self._process.poll() is None:
            return
        end = describe_exit(self._process.returncode)
        self._close_input()
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) >= MAX_RESTARTS:
            what = f"the HTTP server {end}, and does so again and again within {RESTART_WINDOW_S:.0f} s"
            raise EngineError(what, "http", "Its output says why")
        self._restarts.append(now)
        logging.getLogger(__name__).warning("the HTTP server %s: it is started again; requests in flight are lost", end)
        self._start()

    def stop(self) -> None:
        """End the server: running requests have the grace time, then they are ended with an error. Idempotent."""
        self._socket.close()
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(self._options.limits.grace_s + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        fd, log_fd = self._socket.fileno(), self._options.log.fd
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "expertflow.runtime.http", str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[fd, *([log_fd] if log_fd >= 0 else [])],
            process_group=0,  # Ctrl-C reaches the command alone
            bufsize=0,
        )
        self._write(to_line(self._options.to_spec(fd)))
        pipe = self._process.stdin
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
        self._write(to_line(self._latest))

    def _tell(self, update: Update) -> None:
        self._latest = update
        self._write(to_line(update))

    def _write(self, line: bytes) -> None:
        """Write a line, unless the process has ended; then `check` starts another, which gets the latest one."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(line)
        except (BrokenPipeError, BlockingIOError):
            return

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def require_extra() -> None:
    """Raise UsageError unless the libraries of the extra `serve` are there."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"needs {', '.join(missing)}, which is not installed", "--http", EXTRA)
