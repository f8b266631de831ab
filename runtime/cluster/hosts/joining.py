"""A gateway of a command's own to a running cluster: an address that every client of an engine can use."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from ....errors import EngineError, ExpertFlowError
from ..gateway.shell import GatewayShell
from ..progress import ENGINES
from .front import make_shell
from .links import ReplicaLinks
from .settings import APP, ClusterSettings

READY_S = 120.0
OTHERS_S = 2.0
"""Time after the first replica in which others may answer."""


@contextmanager
def ray_client(address: str) -> Iterator[None]:
    """Connect this process to the Ray at `address` (auto: the one on this machine). Raises EngineError."""
    try:
        ray.init(address=address, namespace=APP, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = "Start it with: expertflow cluster up"
        raise EngineError("no Ray answers there", address, remedy) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


class Joined(NamedTuple):
    """A gateway to a cluster."""

    address: str
    """Address for clients, as that of an engine."""
    replicas: int
    """Replicas that had answered then."""


@contextmanager
def gateway_to(address: str, settings: ClusterSettings) -> Iterator[Joined]:
    """Yield a gateway of this process to the cluster at `address`; requests need no HTTP then.

    Raises EngineError if no cluster runs there, or if no replica answers.
    """
    with ray_client(address):
        gateway = GatewayThread(settings)
        try:
            yield gateway.start()
        finally:
            gateway.stop()


class GatewayThread:
    """A gateway in an event loop of its own."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._joined: Future[Joined] = Future()
        self._stopping: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="expertflow-gateway", daemon=True)

    def start(self) -> Joined:
        """Return the gateway once replicas have answered. Raises EngineError."""
        self._thread.start()
        return self._joined.result()

    def stop(self) -> None:
        """End the gateway."""
        if self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except (ExpertFlowError, RayServeException) as error:
            if not self._joined.done():
                self._joined.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        shell = make_shell(self._settings)
        links = ReplicaLinks(serve.get_deployment_handle(ENGINES, APP), shell)
        try:
            await self._wait_for_a_replica(shell)
            await asyncio.sleep(OTHERS_S)
            self._joined.set_result(Joined(shell.address, len(shell.gateway.router.fleet)))
            await self._stopping.wait()
        finally:
            await links.close()
            shell.close()

    async def _wait_for_a_replica(self, shell: GatewayShell) -> None:
        try:
            await asyncio.wait_for(shell.ready.wait(), READY_S)
        except TimeoutError as error:
            what = f"no replica has answered within {READY_S:.0f} s"
            raise EngineError(what, "cluster", "`expertflow cluster status` shows them") from error
