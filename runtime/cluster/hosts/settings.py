"""Settings of a cluster as they travel to its hosts: plain data that YAML can hold."""

from __future__ import annotations

from typing import Any

import msgspec

from ....configs.schema import Config
from ....errors import UsageError
from ..autoscaling import ScalingBounds
from ..routing.rules import DEFAULT_SLACK, RuleName

APP = "expertflow"
"""Name of the application in Ray Serve."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the hosts of a cluster are told; `args` of the application in a YAML file for `serve deploy`."""

    model: str
    engine: dict[str, Any] = {}
    """Other options of the engine (docs/configuration.md), those that differ from `preset`."""
    preset: str = "cpu-disk"
    replicas: int = 1
    scaling: ScalingBounds | None = None
    """Bounds between which the number of replicas follows the load; None: it is `replicas`."""
    routing: RuleName = "experts"
    slack: int = DEFAULT_SLACK
    queue_limit: int = 4096
    names: list[str] = []
    """Names of the model in the API; none: that of its folder."""
    key_file: str = ""
    """File with the server's keys, on the host of the front; empty: everyone is let in."""
    default_max_tokens: int = 1024
    cpus_per_replica: float = 1.0
    """Processors that Ray counts a replica as; it does not bind them."""
    one_per_host: bool = True
    """At most one replica on each host."""

    @property
    def least_replicas(self) -> int:
        """Return the number of replicas to begin with."""
        return self.replicas if self.scaling is None else self.scaling.min_replicas

    def config(self) -> Config:
        """Return the configuration of an engine. Raises UsageError for an option that there is not."""
        base = msgspec.to_builtins(Config.load(self.preset))
        unknown = sorted(self.engine.keys() - base.keys())
        if unknown:
            raise UsageError(f"is no option of an engine: {', '.join(unknown)}", "engine", "See docs/configuration.md")
        return msgspec.convert({**base, **self.engine, "model": self.model}, Config)


def read_settings(content: object) -> ClusterSettings:
    """Return the settings in plain data. Raises UsageError."""
    try:
        return msgspec.convert(content, ClusterSettings)
    except msgspec.ValidationError as error:
        raise UsageError(f"cannot be used: {error}", "args", "See docs/cluster.md") from error


def engine_options(config: Config, preset: str) -> dict[str, Any]:
    """Return the options that differ from those of the preset, without the model."""
    base, given = msgspec.to_builtins(Config.load(preset)), msgspec.to_builtins(config)
    return {name: value for name, value in given.items() if name != "model" and value != base[name]}
