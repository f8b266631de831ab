"""The process of the proxy: `python -m expertflow.runtime.remote SPEC`."""

from __future__ import annotations

import gc
import logging
import resource
import socket
import sys
from pathlib import Path

import zmq

from ...ipc.shared.open_files import allow_open_files
from ...ipc.stage.logs import set_up_logging
from ...ipc.stage.run_with_parent import end_with_process
from .door import Door
from .keys import AllowedKeys, read_server_pair
from .proxy import Proxy
from .remote_clients import MAX_CLIENTS
from .spec import ProxySpec

FILES_A_CLIENT = 4
OTHER_FILES = 100
MAX_DATA_BYTES = 2 << 30
"""Memory of this process; beyond it the process dies, and the engine does not notice."""
STEP_S = 1.0


def main() -> None:
    """Pass messages on until the parent ends, or the process is stopped."""
    spec = ProxySpec.from_argument(sys.argv[1])
    end_with_process(spec.parent)
    set_up_logging(spec.log, "remote")
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    gc.freeze()
    serve(spec)


def serve(spec: ProxySpec) -> None:
    """Pass messages on without an end."""
    files = allow_open_files(FILES_A_CLIENT * MAX_CLIENTS + OTHER_FILES)
    max_clients = max(1, min(MAX_CLIENTS, (files - OTHER_FILES) // FILES_A_CLIENT))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * max_clients + OTHER_FILES)
    folder = Path(spec.keys)
    allowed = AllowedKeys(folder)
    door = Door(context, read_server_pair(folder), allowed, socket.socket(fileno=spec.fd))
    proxy = Proxy(context, door, spec.run_dir, max_clients)
    logging.getLogger(__name__).info("up to %d remote clients, with one of %d keys", max_clients, len(allowed))
    while True:
        proxy.step(STEP_S)


if __name__ == "__main__":
    main()
