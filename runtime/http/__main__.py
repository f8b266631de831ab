"""The process of the HTTP server: `python -m expertflow.runtime.http PARENT_PID`, told what to do on its input."""

from __future__ import annotations

import asyncio
import gc
import io
import socket
import sys

import msgspec
from uvicorn import Config, Server

from ...ipc.shared.open_files import allow_open_files
from ...ipc.stage.logs import set_up_logging
from ...ipc.stage.run_with_parent import end_with_process
from .app import Application
from .counters import Counters
from .engine_link import EngineLink
from .protocol import limited_protocol
from .spec import FrontSpec, read_spec, read_update

OTHER_FILES = 100
"""Open files that are no connection."""
MARGIN_S = 1
"""Seconds for replies that were ended with an error to go out."""


def main() -> None:
    """Serve until the input ends, or the parent does."""
    end_with_process(int(sys.argv[1]))
    spec = read_spec(io.FileIO(0, closefd=False).readline())  # unbuffered: later lines are read elsewhere
    set_up_logging(spec.log, "http")
    gc.freeze()
    asyncio.run(serve(spec))


async def serve(spec: FrontSpec) -> None:
    """Answer requests on the socket of `spec` until the input ends."""
    link = EngineLink(spec, Counters())
    server = Server(configure(spec, Application(link)))
    following = asyncio.create_task(_follow_input(link, server))
    following.add_done_callback(lambda done: _stop(link, server))
    listener = socket.socket(fileno=spec.fd)
    try:
        await server.serve(sockets=[listener])
        if following.done():
            following.result()  # raises: the command starts another server
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await link.close()


def configure(spec: FrontSpec, app: Application) -> Config:
    """Return uvicorn's configuration, with as many connections as this process may open files."""
    limits = spec.limits
    files = allow_open_files(limits.connections + OTHER_FILES)
    limits = msgspec.structs.replace(limits, connections=min(limits.connections, files - OTHER_FILES))
    return Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=round(limits.idle_timeout_s),
        timeout_graceful_shutdown=round(limits.grace_s) + MARGIN_S,
    )


async def _follow_input(link: EngineLink, server: Server) -> None:
    """Apply the lines of the input; at its end stop the server, and running requests after the grace time."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await link.update(read_update(line))
    _stop(link, server)
    loop.call_later(link.spec.limits.grace_s, link.stopping.set)
    await asyncio.Event().wait()


def _stop(link: EngineLink, server: Server) -> None:
    server.should_exit = True
    link.feed.stop()


if __name__ == "__main__":
    main()
