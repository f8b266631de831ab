"""A gateway's conversations with the replicas of a deployment, over handles of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from ....errors import ExpertFlowError
from ..gateway.shell import GatewayShell
from ..gateway.state import REQUESTS_AHEAD
from .ticket import Ticket

RETRY_S = 0.5
BEAT_S = 2.0
"""Interval of signs that the gateway is there."""
LAST_WORDS_S = 5.0
"""Time in which a replica that leaves the deployment may still take the cancellations of what it runs."""
LOST = (RayError, RayServeException, ExpertFlowError, ConnectionError)


class ReplicaLink:
    """The conversation with one replica; `send` makes it a `ReplicaPort`."""

    def __init__(self, handle: DeploymentHandle, name: str, link: str) -> None:
        self._sender = handle.options(method_name="send")
        self._ticket = Ticket(name, link)
        self._sending: set[asyncio.Task[None]] = set()

    def send(self, frames: list[bytes]) -> None:
        """Send frames; calls of one handle to one replica arrive in their order."""
        task = asyncio.ensure_future(_ignore_loss(self._sender.remote(self._ticket, frames)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


async def _ignore_loss(response: Awaitable[None]) -> None:
    """Await the end of a call. A replica that is lost shows in the conversation, too."""
    try:
        await response
    except LOST:
        return


class ReplicaLinks:
    """Keeps a conversation with every replica that there is."""

    def __init__(self, handle: DeploymentHandle, shell: GatewayShell) -> None:
        self._handle, self._shell = handle, shell
        self._loop = asyncio.get_running_loop()
        self._link = uuid.uuid4().hex
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._names: frozenset[str] = frozenset()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End all conversations."""
        tasks = [self._watching, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Ask for the set of replicas; later changes of it come by themselves."""
        ticket = Ticket("", self._link, self._on_change)
        while True:
            try:
                await self._handle.options(method_name="name").remote(ticket)
                return
            except LOST:
                await asyncio.sleep(RETRY_S)

    def _on_change(self, names: frozenset[str]) -> bool:
        """Take the set of replicas, in a thread of Serve; return False once the gateway has ended."""
        try:
            self._loop.call_soon_threadsafe(self._update, names)
        except RuntimeError:  # its loop is closed
            return False
        return True

    def _update(self, names: frozenset[str]) -> None:
        left, self._names = self._names - names, names
        for name in left:
            self._shell.drain(name)
            self._loop.call_later(LAST_WORDS_S, self._stop, name)
        for name in names - self._tasks.keys():
            self._tasks[name] = asyncio.create_task(self._converse(name))

    def _stop(self, name: str) -> None:
        if name not in self._names and (task := self._tasks.get(name)) is not None:
            task.cancel()

    async def _converse(self, name: str) -> None:
        """Hold a conversation, and begin it again as long as the replica is in the set."""
        try:
            while name in self._names:
                try:
                    await self._listen(name)
                except LOST as error:
                    logging.getLogger(__name__).warning("replica %s was lost: %s", name, _first_line(error))
                finally:
                    self._shell.lose(name)
                await asyncio.sleep(RETRY_S)
        finally:
            self._tasks.pop(name, None)

    async def _listen(self, name: str) -> None:
        ticket = Ticket(name, self._link)
        said = self._handle.options(method_name="converse", stream=True).remote(ticket)
        assert isinstance(said, DeploymentResponseGenerator)  # noqa: S101 - what `stream` says, for the type checker
        beating: asyncio.Task[None] | None = None
        try:
            async for frames, state in said:
                if beating is None:
                    port = ReplicaLink(self._handle, name, self._link)
                    beating = asyncio.create_task(self._beat(name))
                    self._shell.connect(name, port)
                self._shell.receive(name, frames)
                if state is not None:
                    self._shell.publish(name, state)
        finally:
            if beating is not None:
                beating.cancel()
            said.cancel()

    async def _beat(self, name: str) -> None:
        """Tell a replica again and again that the gateway is there, and how old its queue is."""
        beat, ticket = self._handle.options(method_name="beat"), Ticket(name, self._link)
        while True:
            await _ignore_loss(beat.remote(ticket, *self._load()))
            await asyncio.sleep(BEAT_S)

    def _load(self) -> tuple[float, float]:
        """Return the age of the queue in seconds, and requests at replicas ÷ their rows."""
        gateway = self._shell.gateway
        fleet = gateway.router.fleet
        busy = REQUESTS_AHEAD * fleet.outstanding.sum() / max(int(fleet.capacity.sum()), 1)
        return gateway.queue_age_ns(time.monotonic_ns()) / 1e9, float(busy)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
