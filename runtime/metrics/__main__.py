"""The process of the metrics server: `python -m expertflow.runtime.metrics PARENT_PID SOCKET_FD ENGINE_ADDRESS`."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Lock
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client.core import Metric
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.registry import Collector, CollectorRegistry

from ...errors import EngineError
from ...ipc.stage.run_with_parent import end_with_process
from ..client.watching import Watcher
from .collector import build_info, engine_metrics

MAX_CONNECTIONS = 16
"""Connections that are answered at a time; others wait for `WAIT_S`, then they are closed."""
WAIT_S = 1.0
SILENCE_S = 10.0
"""Time after which a client that neither asks nor reads is closed."""


class EngineCollector(Collector):
    """Collects the metrics of the engine at an address whenever somebody scrapes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = Lock()

    def describe(self) -> Iterable[Metric]:
        """Return all metrics without values, by whose names a scraper may choose (`?name[]=`)."""
        return [build_info(), *engine_metrics(None)]

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; of an engine that does not answer, that it is down."""
        with self._lock:
            try:
                with Watcher(self._address) as watcher:
                    snapshot = watcher.snapshot()
            except EngineError:
                snapshot = None
        yield build_info()
        yield from engine_metrics(snapshot)


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing: a scrape a second is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = str(listener.getsockname()[0]), int(listener.getsockname()[1])
        self.setup_environ()
        self._free = BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if self._free.acquire(timeout=WAIT_S):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def main() -> None:
    """Serve until the parent ends."""
    pid, fd, address = sys.argv[1:]
    end_with_process(int(pid))
    registry = CollectorRegistry()
    registry.register(EngineCollector(address))
    with _Server(socket.socket(fileno=int(fd))) as server:
        server.set_app(make_wsgi_app(registry))
        server.serve_forever()


if __name__ == "__main__":
    main()
