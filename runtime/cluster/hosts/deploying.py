"""Deploys the application and waits until the replicas that find a host serve. Imports ray: only `control` needs it."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec
import ray
from ray import serve

from ....errors import EngineError
from ..progress import Deployed, deployed_of, first_error
from .application import build_application
from .settings import APP, ClusterSettings

POLL_S = 0.5
STEADY_POLLS = 4
"""Times in a row that a cluster must look ready: the controller takes a moment to begin a change."""


class HttpAddress(NamedTuple):
    """Address at which the front listens."""

    host: str
    port: int


def deploy(settings: ClusterSettings, http: HttpAddress) -> Deployed:
    """Deploy, or change what runs; return what runs once every replica that finds a host does. Raises EngineError.

    Replicas beyond the number of hosts wait for hosts; nobody waits for them here.
    """
    serve.start(http_options={"host": http.host, "port": http.port, "location": "HeadOnly"})
    target = serve.RunTarget(build_application(msgspec.to_builtins(settings)), name=APP, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    steady, deployed = 0, _look(settings)
    while steady < STEADY_POLLS:
        time.sleep(POLL_S)
        deployed = _look(settings)
        steady = steady + 1 if deployed.ready else 0
    return deployed


def _look(settings: ClusterSettings) -> Deployed:
    """Return what runs now. Raises EngineError if the deployment has failed."""
    application = serve.status().applications.get(APP)
    if application is None:
        raise EngineError("was deleted while it was deployed", APP, "Run the command again")
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    if application.status == "DEPLOY_FAILED":
        raise EngineError(f"could not start: {first_error(messages)}", APP, "The logs in Ray's folder say more")
    states = {
        name: {state.upper(): count for state, count in deployment.replica_states.items()}
        for name, deployment in application.deployments.items()
    }
    hosts = sum(bool(node["Alive"]) for node in ray.nodes())
    return deployed_of(states, settings.least_replicas, hosts if settings.one_per_host else None)
