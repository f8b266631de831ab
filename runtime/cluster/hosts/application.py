"""The application of Ray Serve: engines on the hosts, and a front."""

from __future__ import annotations

from typing import Any

import msgspec
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from .front import HttpFront
from .replica import EngineReplica
from .settings import ENGINES, FRONT, ClusterSettings, read_settings
from .switch import Switch

MAX_CALLS = 10_000
"""Calls that a replica takes at once: conversations and sends of gateways; the gateways bound the requests."""
HEALTH_S = 2.0


def build_application(args: dict[str, Any]) -> Application:
    """Return the application of these settings (`ClusterSettings`); `args` in a YAML file. Raises UsageError."""
    settings = read_settings(args)
    settings.config()  # refuses an option that there is not before any host starts
    content = msgspec.to_builtins(settings)
    engines = serve.deployment(
        name=ENGINES,
        max_replicas_per_node=1 if settings.one_per_host else None,
        max_ongoing_requests=MAX_CALLS,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=20.0,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        request_router_config=RequestRouterConfig(request_router_class=Switch),
        **_replicas(settings),
    )(EngineReplica)
    front = serve.deployment(
        name=FRONT,
        max_ongoing_requests=settings.queue_limit,
        graceful_shutdown_timeout_s=20.0,
        ray_actor_options={"num_cpus": 0},
    )(HttpFront)
    return front.bind(engines.bind(content), content)


def _replicas(settings: ClusterSettings) -> dict[str, Any]:
    return {"num_replicas": settings.replicas}
