"""Import modules, then fork processes that need them: `python -m expertflow.tests.forking.server FD MODULE…`.

An order is one message on the socket FD: a pickled `Order`, with the descriptors that the process inherits. The answer
is the pid. It runs as a new process would, but for its imports and the variables that libraries read at import.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import pickle
import runpy
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

MAX_ORDER_BYTES = 1 << 20
MAX_DESCRIPTORS = 250
FIRST_FREE = 200
"""Descriptors that arrive are moved up here first: the process wants them at numbers of its parent."""
PID = struct.Struct("q")


class Order(NamedTuple):
    """What a process starts with; its descriptors come with the message, stdin, stdout and stderr first."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    descriptors: list[int]
    """Numbers that the descriptors have in the process."""
    group: int = 0
    """Process group; 0: one of its own."""
    first: Callable[[], object] | None = None
    """Called before the module runs; its module is imported by name."""
    forks_stages: bool = False
    """Whether the process has a server of its own, a fork of this one, for the processes that it starts."""


class Work(NamedTuple):
    """An order in the new process that it is for."""

    order: Order
    descriptors: list[int]


def main() -> None:
    """Fork a process for each order until the other end of the socket is closed."""
    orders = int(sys.argv[1])
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # no fork copies these pages by counting them
    while work := serve(orders):
        become(work)
        if not work.order.forks_stages or not (orders := split_off(work.order)):
            run_module(work.order)
            return


def serve(fd: int) -> Work | None:
    """Answer orders; return None at their end, or, in a new process, the order that it is for."""
    with socket.socket(fileno=fd) as orders:
        while True:
            data, descriptors, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, MAX_DESCRIPTORS)
            if not data:
                return None
            pid = fork_orphan()
            if not pid:
                return Work(pickle.loads(data), descriptors)
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


def become(work: Work) -> None:
    """Give this process all that the order describes but its module."""
    order, descriptors = work
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE + max(order.descriptors)) for fd in descriptors]
    close_all(descriptors)
    for fd, number in zip(moved, order.descriptors, strict=True):
        os.dup2(fd, number)
    close_all(moved)
    os.setpgid(0, order.group)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    if "torch" in sys.modules and (threads := order.environment.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))
    if order.first:
        order.first()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # what the interpreter does when it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)


def split_off(order: Order) -> int:
    """Fork a server for what this process starts. Return 0, and in the server the socket that its orders come from."""
    from .forks import ForkServer, StageForks

    ours, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        orders.close()
        StageForks(ForkServer(ours, pid)).replace_starts()
        return 0
    ours.close()
    os.setpgid(0, 0)
    with open(os.devnull, "r+b") as nothing:
        for fd in (0, 1, 2):
            os.dup2(nothing.fileno(), fd)
    close_all(fd for fd in order.descriptors if fd > 2)
    return orders.detach()


def run_module(order: Order) -> None:
    """Run the module of the order; raises SystemExit with its exit code."""
    sys.argv = ["", *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in descriptors:
        os.close(fd)


if __name__ == "__main__":
    main()
