"""The application of Ray Serve: engines on the hosts, and a front."""

from __future__ import annotations

from typing import Any

import msgspec
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from ..progress import ENGINES, FRONT
from .front import HttpFront
from .replica import EngineReplica
from .scaling import ScalingPolicy
from .settings import ClusterSettings, read_settings

MAX_CALLS = 10_000
"""Calls that a replica takes at once: conversations and sends of gateways; the gateways bound the requests."""
HEALTH_S = 2.0
ON_HEAD = {"node:__internal_head__": 0.001}
"""Resource that puts the front where the proxy of Serve listens, and where the file with the keys is."""
SWITCH = f"{__package__}.switch:Switch"
"""Request router of the engines, as Serve imports it."""


def build_application(args: dict[str, Any]) -> Application:
    """Return the application of these settings (`ClusterSettings`); `args` in a YAML file. Raises UsageError."""
    settings = read_settings(args)
    settings.config()  # refuses an option that there is not before any host starts
    content = msgspec.to_builtins(settings)
    engines = serve.deployment(
        name=ENGINES,
        max_ongoing_requests=MAX_CALLS,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=20.0,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": SWITCH}),
        **_replicas(settings),
    )(EngineReplica)
    front = serve.deployment(
        name=FRONT,
        max_ongoing_requests=settings.queue_limit,
        graceful_shutdown_timeout_s=20.0,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD},
    )(HttpFront)
    return front.bind(engines.bind(_of_engines(settings)), content)


def _of_engines(settings: ClusterSettings) -> dict[str, Any]:
    """Return what the engines need alone: a change of the rest, such as their number, starts none of them again."""
    return {"model": settings.model, "engine": settings.engine, "preset": settings.preset}


def _replicas(settings: ClusterSettings) -> dict[str, Any]:
    """Return the options that say how many replicas there are, and where."""
    placed = {"max_replicas_per_node": 1} if settings.one_per_host else {}
    if (bounds := settings.scaling) is None:
        return {"num_replicas": settings.replicas, **placed}
    policy = AutoscalingPolicy(policy_function=ScalingPolicy, policy_kwargs={"bounds": msgspec.to_builtins(bounds)})
    scaling = AutoscalingConfig(
        min_replicas=bounds.min_replicas,
        max_replicas=bounds.max_replicas,
        upscale_delay_s=0,
        downscale_delay_s=0,  # the policy waits by itself
        metrics_interval_s=1.0,
        look_back_period_s=3.0,
        policy=policy,
    )
    return {"autoscaling_config": scaling, **placed}
