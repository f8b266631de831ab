"""The client's sockets: messages to and from the scheduler, and whether there is an engine at all.

No wait is without an end. The engine lives as long as its supervisor holds the lock on the run directory (the kernel
lets go of it however the supervisor dies); a scheduler that is restarted is noticed by the socket's own reconnect.
"""

from __future__ import annotations

import fcntl
import os
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from ...errors import EngineError
from ...ipc.messages import AskSnapshot, FromClient, Hello, Message, Snapshot, ToClient
from ...ipc.messages.control import SNAPSHOT
from ...ipc.messages.to_client import TO_CLIENT
from ...ipc.transport.addresses import CLIENTS, MONITOR, socket_address
from ...ipc.transport.link import Link
from ...ipc.transport.sockets import Context, Socket, open_socket

LOOK_NS = 500_000_000
"""No wait is longer than it is sensible not to look after the engine."""
_HELLO_NS = 5_000_000_000
_FAREWELL_MS = 200


class Connection:
    """A client's link to the scheduler of the engine at `address` (its run directory).

    Raises EngineError at once if there is no engine, later whenever it is found dead or silent for `answer_timeout_s`.
    """

    def __init__(self, address: str | os.PathLike[str], answer_timeout_s: float) -> None:
        self._run_dir = run_dir_of(address)
        self._answer_timeout_ns = round(answer_timeout_s * 1e9)
        require_alive(self._run_dir)
        self._context: Context = zmq.Context()
        # Without an identity of its own each connection is a stranger to the scheduler, so that none can be taken for a
        # dead one. Watched before it connects, or the first handshake may be missed and the second taken for it.
        socket = open_socket(self._context, zmq.DEALER)
        self._handshakes = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(socket_address(self._run_dir, CLIENTS))
        self._link: Link[ToClient] = Link(socket, TO_CLIENT)
        self._connected_before = False
        self._silent_ns = self._greeted_at_ns = 0

    @property
    def run_dir(self) -> str:
        """Of the engine."""
        return self._run_dir

    def send(self, message: FromClient) -> None:
        """Never blocks; what is sent while the scheduler is down reaches its successor."""
        self._link.send(message)

    @property
    def sockets(self) -> tuple[Socket, Socket]:
        """Where something may arrive."""
        return self._link.socket, self._handshakes

    def look_after(self, waited_ns: int) -> None:
        """Nothing has arrived: does the engine live, does its scheduler answer? Only time spent waiting is silence."""
        require_alive(self._run_dir)
        self._silent_ns += waited_ns
        if self._silent_ns - self._greeted_at_ns > _HELLO_NS:
            self._greeted_at_ns = self._silent_ns
            self.send(Hello())
        if self._silent_ns > self._answer_timeout_ns:
            what = f"the scheduler has not answered for {self._silent_ns / 1e9:.0f} s"
            raise EngineError(what, self._run_dir, "`expertflow top` shows what it waits for")

    def receive(self) -> list[ToClient]:
        """Everything that has arrived."""
        messages: list[ToClient] = []
        while some := self._link.receive():
            messages += some
        if messages:
            self._silent_ns = self._greeted_at_ns = 0
        return messages

    def reconnected(self) -> bool:
        """Whether the scheduler at the other end may be another one than at the last call."""
        handshakes = 0
        while self._handshakes.poll(0):
            recv_monitor_message(self._handshakes)
            handshakes += 1
        reissue_copies = handshakes > 0 and (self._connected_before or handshakes > 1)
        self._connected_before = self._connected_before or handshakes > 0
        return reissue_copies

    def ask_snapshot(self, timeout_s: float) -> Snapshot:
        """The supervisor's newest snapshot of all stages."""
        link: Link[Snapshot] = Link.connect(self._context, socket_address(self._run_dir, MONITOR), SNAPSHOT)
        try:
            return _ask(link, AskSnapshot(), timeout_s, self._run_dir)
        finally:
            link.close()

    def close(self) -> None:
        """Last words get a moment to go out."""
        self._link.socket.disable_monitor()
        self._handshakes.close(linger=0)
        self._link.close(_FAREWELL_MS)
        self._context.destroy(linger=None)


def _ask(link: Link[Snapshot], question: Message, timeout_s: float, run_dir: str) -> Snapshot:
    link.send(question)
    deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
    while time.monotonic_ns() < deadline_ns:
        if link.socket.poll(100):
            for answer in link.receive():
                return answer
        require_alive(run_dir)
    raise EngineError(f"no snapshot within {timeout_s} s", run_dir, "The supervisor may be overloaded; try again")


def run_dir_of(address: str | os.PathLike[str]) -> str:
    """The run directory, also when the address of the client socket in it was given."""
    path = os.fspath(address).removeprefix("ipc://")
    return os.path.dirname(path) if os.path.basename(path) == CLIENTS else path


def require_alive(run_dir: str) -> None:
    """Raise EngineError unless a supervisor holds the lock of its run directory."""
    remedy = "Start the engine again; its output says why it ended"
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError("there is no engine", run_dir or "address", remedy) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise EngineError("the engine has ended", run_dir, remedy)
