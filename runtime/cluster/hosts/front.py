"""The HTTP server of the cluster, as a deployment of Ray Serve: the same application as on one host."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from ....ipc.shared.rundir import RunDir
from ...http.app import Application
from ...http.counters import Counters
from ...http.engine_link import EngineLink
from ...http.options import read_keys
from ...http.spec import FrontSpec, Serving
from ..gateway.metrics import gateway_metrics
from ..gateway.shell import GatewayShell
from ..gateway.state import Gateway
from ..routing.router import Router
from ..routing.rules import make_rule
from .links import ReplicaLinks
from .private_port import keep_port_private
from .settings import ClusterSettings, read_settings


def make_shell(settings: ClusterSettings) -> GatewayShell:
    """Return a gateway in a run directory of its own, without replicas, in the running event loop."""
    router = Router(make_rule(settings.routing), settings.slack)
    gateway = Gateway(router, prefix=f"{uuid.uuid4().hex}-", queue_limit=settings.queue_limit)
    return GatewayShell(gateway, RunDir.create())


@serve.ingress()
class HttpFront:
    """The front: a gateway to the replicas, and the HTTP application as its client."""

    async def __init__(self, engines: DeploymentHandle, content: dict[str, Any]) -> None:
        keep_port_private()
        settings = read_settings(content)
        self._shell = make_shell(settings)
        self._links = ReplicaLinks(engines, self._shell)
        self._link = EngineLink(_spec(settings), Counters())
        self._link.cluster_metrics = lambda: gateway_metrics(self._shell.gateway, time.monotonic_ns())
        self._connecting = asyncio.create_task(self._connect())

    def __serve_build_asgi_app__(self) -> Application:
        """Return the application, for Serve."""
        return Application(self._link)

    async def __del__(self) -> None:
        """Disconnect, when Serve ends the front."""
        self._connecting.cancel()
        await self._links.close()
        await self._link.close()
        self._shell.close()

    async def _connect(self) -> None:
        """Let the application answer once a replica is there; before, it says that the model loads."""
        await self._shell.ready.wait()
        await self._link.update(Serving(self._shell.address))


def _spec(settings: ClusterSettings) -> FrontSpec:
    names = settings.names or [Path(settings.model).name]
    keys = read_keys([], Path(settings.key_file)) if settings.key_file else []
    return FrontSpec(fd=-1, names=names, keys=keys, default_max_tokens=settings.default_max_tokens)
