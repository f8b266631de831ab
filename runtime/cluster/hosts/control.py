"""`expertflow cluster up`, `status` and `down`. Ray is imported only when one of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ....configs.schema import Config
from ....errors import UsageError
from ...http.front import require_extra
from ...monitor.tables import plain_table, result_console
from ...service.listening import is_loopback
from ..autoscaling import ScalingBounds
from ..progress import Deployed
from ..routing.rules import RuleName
from .extra import keep_private, require_ray
from .local_ray import LocalRay, answers, end_ray, forget, recall, remember, require_answer, start_ray
from .settings import APP, ClusterSettings, engine_options


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of `cluster up`."""

    min_replicas: int
    max_replicas: int
    address: str
    host: str
    port: int
    routing: RuleName
    slack: int
    key_file: Path | None
    preset: str

    def settings(self, config: Config) -> ClusterSettings:
        """Return what the hosts are told. Raises UsageError for bounds that exclude each other."""
        scales = self.max_replicas != self.min_replicas
        bounds = ScalingBounds(min_replicas=self.min_replicas, max_replicas=self.max_replicas)
        return ClusterSettings(
            model=str(Path(config.model).resolve()) if Path(config.model).is_dir() else config.model,
            preset=self.preset,
            engine=engine_options(config, self.preset),
            replicas=self.min_replicas,
            scaling=bounds if scales else None,
            routing=self.routing,
            slack=self.slack,
            queue_limit=config.queue_limit,
            key_file="" if self.key_file is None else str(self.key_file.resolve()),
        )


def start_cluster(config: Config, options: ClusterOptions) -> None:
    """Start a cluster, or change the one that runs, and print its addresses. Raises ExpertFlowError."""
    require_ray()
    require_extra()
    if not config.model:
        raise UsageError("no model given", "--model", "Give the folder of a checkpoint or a hub id")
    if not is_loopback(options.host) and options.key_file is None:
        remedy = "Give --api-key-file, or leave out --host"
        raise UsageError("would let everyone in who reaches it", "--host", remedy)
    settings = options.settings(config)
    settings.config()
    before = recall()
    cluster = _join(options, before)
    try:
        deployed = _deploy(cluster, settings, options)
    except BaseException:
        if cluster.folder and cluster != before:
            end_ray(cluster.folder)
        raise
    url = f"http://{options.host}:{options.port}"
    remember(msgspec.structs.replace(cluster, url=url))
    _print_deployed(config.model, url, cluster, deployed)


def _print_deployed(model: str, url: str, cluster: LocalRay, deployed: Deployed) -> None:
    lines = [f"Ready: {model}, {deployed.running} of {deployed.wanted} replicas"]
    private = is_loopback(cluster.address.rpartition(":")[0])
    if deployed.homeless and private:
        lines.append("Waiting: one host has one replica; others join a Ray that --host gives a private address")
    elif deployed.homeless:
        lines.append(f"Waiting for hosts: on each, ray start --address={cluster.address} --disable-usage-stats")
    if not private:
        lines.append(
            "Open: Ray listens at all addresses of its hosts; let only hosts of the cluster reach them"
        )
    lines += [
        f"HTTP: {url}/v1",
        f"Ray: {cluster.address}",
        f"Batches: expertflow batch IN.jsonl OUT.jsonl --cluster {cluster.address}",
        "Stop: expertflow cluster down",
    ]
    console = result_console()
    for line in lines:
        console.print(line, soft_wrap=True)


def print_status(address: str) -> None:
    """Print the deployments and the states of their replicas. Raises EngineError without a cluster."""
    require_ray()
    with _joined_ray(address_of(address)) as serve:
        application = serve.status().applications.get(APP)
    if application is None:
        raise UsageError("runs no cluster of ExpertFlow", "Ray", "Start one with: expertflow cluster up")
    table = plain_table("deployment", "state", "replicas", "")
    for name, deployment in application.deployments.items():
        states = ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items() if count)
        table.add_row(
            name,
            str(deployment.status.value).lower(),
            states,
            deployment.message.splitlines()[0] if deployment.message else "",
        )
    result_console().print(table)


def stop_cluster(address: str) -> None:
    """End the application, and the Ray if `cluster up` started it. Raises EngineError without a cluster."""
    require_ray()
    cluster = recall()
    own = cluster is not None and bool(cluster.folder) and address in ("", "auto", cluster.address)
    address = address_of(address)
    try:
        if answers(address) or not own:
            with _joined_ray(address) as serve:
                serve.delete(APP)
                if own:
                    serve.shutdown()
    finally:
        if cluster is not None and own:
            end_ray(cluster.folder)
            forget()
    result_console().print("The cluster has ended")


@contextmanager
def joined_cluster(address: str) -> Iterator[Any]:
    """Yield a gateway to the cluster at `address` (`Joined`); auto: that of the last `up`. Raises as `gateway_to`."""
    require_ray()
    address = address_of(address)
    require_answer(address)
    keep_private(address)
    from .joining import gateway_to

    with gateway_to(address, ClusterSettings(model="")) as joined:
        yield joined


def address_of(address: str) -> str:
    """Return the address of Ray: the given one, or (empty, auto) that of this user's cluster. Raises UsageError."""
    if address not in ("", "auto"):
        return address
    cluster = recall()
    if cluster is None:
        raise UsageError("no cluster is running", "--address", "Start one with: expertflow cluster up")
    return cluster.address


def _join(options: ClusterOptions, before: LocalRay | None) -> LocalRay:
    """Return the Ray to use: the named one, that of this user's cluster, or a new one on this machine.

    What is left of this user's cluster after the death of its head is ended first.
    """
    if options.address:
        return LocalRay(address=options.address)
    if before is not None and before.folder:
        if answers(before.address):
            return before
        end_ray(before.folder)
    return start_ray(options.host)


@contextmanager
def _joined_ray(address: str) -> Iterator[Any]:
    """Connect this process to a Ray; yield `ray.serve`. Raises EngineError if none answers."""
    require_answer(address)
    keep_private(address)
    from ray import serve

    from .joining import ray_client

    with ray_client(address):
        yield serve


def _deploy(cluster: LocalRay, settings: ClusterSettings, options: ClusterOptions) -> Deployed:
    with _joined_ray(cluster.address):
        from .deploying import HttpAddress, deploy

        return deploy(settings, HttpAddress(options.host, options.port))
