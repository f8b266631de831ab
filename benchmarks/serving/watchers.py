"""Watchers of an engine in processes of their own: a scraper of /metrics, a reader of the page's events, and `top`.

python -m expertflow.benchmarks.serving.watchers PORT: scrapes and reads until its input ends, then writes its counts.
"""

from __future__ import annotations

import http.client
import json
import os
import pty
import subprocess
import sys
import threading
import time
from types import TracebackType

SCRAPE, PAGE, TOP = "metrics", "page", "top"
NAMES = (SCRAPE, PAGE, TOP)
EVENTS_PATH = "/watch/events"
TIMEOUT_S = 30.0
COLUMNS, LINES = "120", "40"


class Watchers:
    """A context manager: all of `names` watch inside. Afterwards `seen` counts scrapes, events and bytes of screens."""

    def __init__(self, names: list[str], port: int, address: str) -> None:
        self.seen: dict[str, int] = {}
        self._names, self._port, self._address = names, port, address
        self._reader: subprocess.Popen[bytes] | None = None
        self._top: _Terminal | None = None

    def __enter__(self) -> Watchers:
        over_http = [name for name in self._names if name != TOP]
        if over_http:
            command = [sys.executable, "-m", "expertflow.benchmarks.serving.watchers", str(self._port), *over_http]
            self._reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if TOP in self._names:
            self._top = _Terminal([sys.executable, "-m", "expertflow", "top", "--address", self._address])
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._top is not None:
            self.seen[TOP] = self._top.close()
        if self._reader is not None:
            written = self._reader.communicate(b"", TIMEOUT_S)[0]
            self.seen |= json.loads(written)


class _Terminal:
    """A program on a terminal of its own, whose screens are thrown away."""

    def __init__(self, command: list[str]) -> None:
        self._main, side = pty.openpty()
        environment = os.environ | {"COLUMNS": COLUMNS, "LINES": LINES, "TERM": "xterm-256color"}
        self._process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
        os.close(side)
        self._bytes = 0
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def close(self) -> int:
        """End the program; return the number of bytes that it has drawn."""
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        self._thread.join()
        os.close(self._main)
        return self._bytes

    def _drain(self) -> None:
        while True:
            try:
                drawn = os.read(self._main, 1 << 16)
            except OSError:  # the program has ended
                return
            self._bytes += len(drawn)


def main() -> None:
    port, names = int(sys.argv[1]), sys.argv[2:]
    counts = dict.fromkeys(names, 0)
    ended = threading.Event()
    work = {SCRAPE: _scrape, PAGE: _read_events}
    for name in names:
        threading.Thread(target=work[name], args=(port, counts, ended), daemon=True).start()
    sys.stdin.read()
    ended.set()
    sys.stdout.write(json.dumps(counts))


def _scrape(port: int, counts: dict[str, int], ended: threading.Event) -> None:
    """Ask for the metrics every second."""
    while not ended.is_set():
        begun_s = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        connection.request("GET", "/metrics")
        counts[SCRAPE] += connection.getresponse().read().count(b"expertflow_engine_up 1")
        connection.close()
        ended.wait(max(0.0, 1 - (time.monotonic() - begun_s)))


def _read_events(port: int, counts: dict[str, int], ended: threading.Event) -> None:
    """Read the events of a page that is open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", EVENTS_PATH)
    reply = connection.getresponse()
    while not ended.is_set() and (line := reply.readline()):
        counts[PAGE] += line.startswith(b"data:")


if __name__ == "__main__":
    main()
