"""The engines that a client talks to: one, or all of a group. Each has a connection and an exchange of its own."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path

import zmq

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Hello, Snapshot, Welcome
from ...ipc.shared.rundir import engines_of, is_group
from ...ipc.transport.sockets import Socket
from .balancer import RequestBalancer
from .connection import LOOK_NS, Connection, run_dir_of
from .request import ClientRequest
from .session import WINDOW, EngineSession
from .snapshots import ask_all

AHEAD = 2
"""Requests that one of several engines is handed, for each that it runs at the same time."""


class EngineConnection:
    """One engine."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.exchange = EngineSession()
        self.welcome: Welcome | None = None

    def take_in(self, ready: dict[Socket, int], waited_ns: int) -> None:
        """Hear what has come. Raises EngineError if the engine is found dead or deaf."""
        if not any(socket in ready for socket in self.connection.sockets):
            self.connection.look_after(waited_ns)
        now_ns = time.monotonic_ns()
        for message in self.connection.receive():
            if isinstance(message, Welcome):
                self._greeted(message)
            else:
                self.exchange.receive(message, now_ns)
        if self.connection.reconnected():  # after the old scheduler's last words
            self.exchange.reconnected()

    def send_due(self) -> None:
        for message in self.exchange.due(time.monotonic_ns()):
            self.connection.send(message)

    def close(self) -> None:
        """Cancel what is open and leave."""
        for message in self.exchange.abandon():
            self.connection.send(message)
        self.connection.close()

    def _greeted(self, welcome: Welcome) -> None:
        if self.welcome is None:
            self.exchange.window = max(1, min(WINDOW, welcome.queue_limit))
            self.exchange.max_outstanding = min(self.exchange.window, AHEAD * welcome.batch_size)
        self.welcome = welcome


class EnginePool:
    """Those that live. Nothing is open before `connect`."""

    def __init__(self) -> None:
        self.failure: ExpertFlowError | None = None
        """Why there is no engine any more, if there is none."""
        self._lanes: list[EngineConnection] = []
        self._is_group = False
        self._dispatch = RequestBalancer()
        self._poller = zmq.Poller()

    def connect(self, address: str | os.PathLike[str], answer_timeout_s: float) -> None:
        """Raises EngineError if there is no engine."""
        run_dir = run_dir_of(address)
        self._is_group = is_group(Path(run_dir))
        end = EngineError("all engines of the group have ended", run_dir, "Start them again")
        for engine in engines_of(Path(run_dir)):
            try:
                self._add(EngineConnection(Connection(engine, answer_timeout_s)))
            except EngineError as error:  # of a group, it has only just ended
                end = error
        if not self._lanes:
            raise end

    @property
    def welcome(self) -> Welcome | None:
        """Of engines for the same model; None before each has answered."""
        heard = [lane.welcome for lane in self._lanes]
        return heard[0] if heard and all(heard) else None

    def hand_in(self, order: ClientRequest) -> None:
        self._dispatch.hand_in(order, time.monotonic_ns())

    def cancel(self, order: ClientRequest) -> None:
        self._dispatch.cancel(order)

    def pump(self, wait_ns: int) -> None:
        """One round: wait a little if asked to, take in what has come, send what is due."""
        ready, waited_ns = self._wait(wait_ns)
        for lane in list(self._lanes):
            try:
                lane.take_in(ready, waited_ns)
            except EngineError as error:
                self._lose(lane, error)
        self._dispatch.spread(time.monotonic_ns())
        for lane in self._lanes:
            lane.send_due()

    def snapshot(self, timeout_s: float) -> Snapshot:
        """Of all that live."""
        return ask_all([partial(lane.connection.ask_snapshot, timeout_s) for lane in self._lanes], self._is_group)

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()

    def _add(self, lane: EngineConnection) -> None:
        self._lanes.append(lane)
        self._dispatch.add(lane.exchange)
        for socket in lane.connection.sockets:
            self._poller.register(socket, zmq.POLLIN)
        lane.connection.send(Hello())

    def _lose(self, lane: EngineConnection, error: EngineError) -> None:
        self._lanes.remove(lane)
        if self._lanes:
            words = "an engine of the group is gone (%s: %s); what it had open (%d requests) goes on at the others"
            logging.getLogger(__name__).warning(words, error.where, error.what, lane.exchange.open_count)
        else:
            self.failure = error
        for socket in lane.connection.sockets:
            self._poller.unregister(socket)
        lane.close()
        self._dispatch.lose(lane.exchange, error)

    def _wait(self, wait_ns: int) -> tuple[dict[Socket, int], int]:
        """What can be received from, and how long that took; no longer than it is sensible not to look after all."""
        started_ns = time.monotonic_ns()
        due_ns = self._dispatch.next_due_ns()
        patience_ns = wait_ns if due_ns is None else min(wait_ns, due_ns - started_ns)
        timeout_ms = -(-max(0, min(patience_ns, LOOK_NS)) // 1_000_000)
        ready = dict(self._poller.poll(timeout_ms))
        return ready, time.monotonic_ns() - started_ns  # pyright: ignore[reportReturnType]
