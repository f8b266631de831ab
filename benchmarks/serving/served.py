"""An engine with its HTTP server, as `expertflow serve --http` starts them."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from expertflow import Config, Supervisor
from expertflow.runtime.http.front import HttpFront
from expertflow.runtime.http.options import HttpOptions

READY_S = 60.0


class Served(NamedTuple):
    """A running engine and its server."""

    address: str
    front: HttpFront

    @property
    def port(self) -> int:
        return int(self.front.url.rpartition(":")[2])


@contextmanager
def served(config: Config) -> Iterator[Served]:
    """Yield an engine whose server is ready."""
    options = HttpOptions(host="127.0.0.1", port=0, names=["model"])
    with HttpFront(options) as front, Supervisor(config) as engine:
        front.serve(engine.address)
        running = Served(engine.address, front)
        _wait_until_ready(running.port)
        yield running
        front.stop()


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_S)
        connection.request("GET", "/ready")
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server is not ready: {status}")
        time.sleep(0.05)
