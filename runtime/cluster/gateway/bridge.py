"""A replica's end of a link to a gateway: frames to and from the scheduler of its engine. Runs in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import zmq

from ....ipc.transport.addresses import CLIENTS, socket_address
from ....ipc.transport.sockets import Context, Socket, open_socket

MAX_FRAMES = 1000
LINGER_MS = 200


class Bridge:
    """A connection to the engine in `run_dir`, which passes frames on as they are."""

    def __init__(self, run_dir: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._context: Context = zmq.Context()
        self._socket = open_socket(self._context, zmq.DEALER)
        # The monitor opens before the socket connects: else the first handshake could be missed.
        self._handshakes = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(socket_address(run_dir, CLIENTS))
        self._seen = 0
        self._woken = False
        self._closed = False
        self._wake = asyncio.Event()
        self._fds = [int(socket.getsockopt(zmq.FD)) for socket in (self._socket, self._handshakes)]
        for fd in self._fds:
            self._loop.add_reader(fd, self._wake.set)
        self._wake.set()

    def send(self, frames: list[bytes]) -> None:
        """Send frames to the scheduler; never blocks."""
        if self._closed:
            return
        for frame in frames:
            self._socket.send(frame, zmq.NOBLOCK)
        self._wake.set()  # sending takes the descriptor's signal

    def wake(self) -> None:
        """Let `frames` yield, though nothing may have arrived."""
        self._woken = True
        self._wake.set()

    async def frames(self) -> AsyncIterator[list[bytes]]:
        """Yield what the scheduler sends, everything that has arrived together; nothing after `wake`.

        Ends when the scheduler was replaced, which knows none of the requests, or when the bridge is closed.
        """
        while not self._closed:
            self._wake.clear()
            frames = self._receive()
            if frames or self._woken:
                self._woken = False
                yield frames
                continue
            if self._was_replaced():
                return
            if not self._readable(self._socket):
                await self._wake.wait()

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._socket.disable_monitor()
        self._handshakes.close(linger=0)
        self._socket.close(linger=LINGER_MS)
        self._context.term()
        self._wake.set()

    def _receive(self) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < MAX_FRAMES and self._readable(self._socket):
            frames.append(self._socket.recv(zmq.NOBLOCK))
        return [frame for frame in frames if frame]

    def _was_replaced(self) -> bool:
        while self._readable(self._handshakes):
            self._handshakes.recv_multipart()
            self._seen += 1
        return self._seen > 1

    @staticmethod
    def _readable(socket: Socket) -> bool:
        return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
