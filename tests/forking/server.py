"""Import modules, then fork stages that need them: `python -m expertflow.tests.forking.server FD MODULE…`.

An order is one message on the socket FD: a pickled `Order`, with the descriptors that the stage inherits. The answer is
the pid. The stage runs as a new process would, but for its imports and the variables that libraries read at import.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import pickle
import runpy
import socket
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

MAX_ORDER_BYTES = 1 << 20
MAX_DESCRIPTORS = 250
FIRST_FREE = 200
"""Descriptors that arrive are moved up here first: the stage wants them at numbers of its supervisor."""
PID = struct.Struct("q")


class Order(NamedTuple):
    """What a stage starts with; its descriptors come with the message, stdin, stdout and stderr first."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    descriptors: list[int]
    """Numbers that the descriptors have in the stage."""


def main() -> None:
    """Fork a stage for each order until the other end of the socket is closed."""
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        for module in sys.argv[2:]:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # no fork copies these pages by counting them
        stage = serve(orders)
    if stage:
        run_stage(*stage)


def serve(orders: socket.socket) -> tuple[Order, list[int]] | None:
    """Answer orders; return None at their end, or, in a new process, the order that it is for."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, MAX_DESCRIPTORS)
        if not data:
            return None
        pid = fork_orphan()
        if not pid:
            return pickle.loads(data), descriptors
        close_all(descriptors)
        orders.sendall(PID.pack(pid))


def fork_orphan() -> int:
    """Return 0 in a new process whose parent has ended, and its pid here: who asked for orphans is its parent then."""
    readable, writable = os.pipe()
    between = os.fork()
    if not between:
        pid = os.fork()
        if pid:
            os.write(writable, PID.pack(pid))
            os._exit(0)
        close_all([readable, writable])
        return 0
    os.waitpid(between, 0)
    (pid,) = PID.unpack(os.read(readable, PID.size))
    close_all([readable, writable])
    return pid


def run_stage(order: Order, descriptors: list[int]) -> None:
    """Become the process that the order describes; raises SystemExit with its exit code."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE + max(order.descriptors)) for fd in descriptors]
    close_all(descriptors)
    for fd, number in zip(moved, order.descriptors, strict=True):
        os.dup2(fd, number)
    close_all(moved)
    os.setpgid(0, 0)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(order.environment["OMP_NUM_THREADS"]))
    sys.argv = ["", *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in descriptors:
        os.close(fd)


if __name__ == "__main__":
    main()
