"""`expertflow status`, `drain` and `reload`: how a running engine does, its orderly end, a change while it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec
import tyro
from msgspec import Meta

from ....configs.schema import Policy, Predictor
from ....errors import EngineError
from ....ipc.messages import Progress
from ...client.watching import Watcher, find_engine, living_engines
from ...command_line.base import DONE, FAILED, WRONG_USAGE, Command
from ...monitor.engine_status import EngineStatus, engine_statuses, status_lines
from ...monitor.progress import ProgressView

NONE = WRONG_USAGE
"""Exit code of `status` where no engine runs."""


@dataclass(frozen=True, kw_only=True)
class Status(Command):
    """Show whether an engine is healthy, its stages, open requests and budgets, and since when it runs.

    Without an address, all of your running engines. Exit codes: 0 healthy, 1 not healthy, 2 none runs.
    """

    address: tyro.conf.Positional[str] = ""
    """Address of the engine, as `expertflow serve` prints it."""
    json: bool = False
    """A line of JSON for each engine instead of text."""

    def run(self) -> int:
        addresses = [self.address] if self.address else [str(path) for path in living_engines()]
        statuses = [status for address in addresses for status in _statuses(address)]
        if not statuses:
            sys.stderr.write("no engine is running\n")
            return NONE
        for status in statuses:
            lines = [msgspec.json.encode(status).decode()] if self.json else status_lines(status)
            sys.stdout.writelines(f"{line}\n" for line in lines)
        return DONE if all(status.healthy for status in statuses) else FAILED


@dataclass(frozen=True, kw_only=True)
class Drain(Command):
    """Let an engine accept nothing new, finish the requests that it has, and end.

    Exit codes: 0 all requests were finished, 1 the deadline cut some off.
    """

    address: tyro.conf.Positional[str] = ""
    """Address of the engine, as `expertflow serve` prints it. Empty: your only running engine."""
    deadline: Annotated[float, Meta(ge=0, le=10**6), tyro.conf.arg(metavar="SECONDS")] = 600.0
    """Longest time to wait for open requests; those that are not done then end with an error."""

    def run(self) -> int:
        with Watcher(find_engine(self.address)) as watcher, ProgressView() as view:
            view(Progress("drain", "waiting for open requests", 0, 1))
            unfinished = watcher.drain(self.deadline)
            view(Progress("drain", "waiting for open requests", 1, 1))
        if unfinished:
            sys.stderr.write(f"{unfinished} requests were not done after {self.deadline:g} s\n")
        return FAILED if unfinished else DONE


@dataclass(frozen=True, kw_only=True)
class Reload(Command):
    """Change memory, policy or predictor of a running engine. No request is lost, and no output changes.

    The processes concerned start again between two steps. What cannot fit is refused with the numbers; if the new
    processes do not come up, the old ones do, and the exit code is 1. Model, types and devices cannot be changed.
    Of several devices, one engine changes after the other; where one cannot, the others are changed back.
    """

    option_groups: ClassVar = {
        "Memory": ("expert_memory", "policy", "rank_victims", "reads_in_flight"),
        "Prediction": ("predictor", "predictor_file"),
    }

    address: tyro.conf.Positional[str] = ""
    """Address of the engine, as `expertflow serve` prints it. Empty: your only running engine."""
    expert_memory: str | None = None
    """Memory for experts: bytes, a percentage of the model's experts, or auto."""
    policy: Policy | None = None
    """Eviction policy."""
    rank_victims: Literal["auto", "always", "never"] | None = None
    """always: predictions choose the expert to evict; never: they only protect experts."""
    reads_in_flight: int | None = None
    """Reader threads of the loader."""
    predictor: Predictor | None = None
    """Predictor of routing."""
    predictor_file: str | None = None
    """Trained predictor, for path and paper; empty: predictor.npz in the model folder."""

    def run(self) -> int:
        names = ("expert_memory", "policy", "rank_victims", "reads_in_flight", "predictor", "predictor_file")
        values = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in values.items() if value is not None}
        with Watcher(find_engine(self.address)) as watcher, ProgressView() as view:
            view(Progress("reload", "starting processes again", 0, 1))
            watcher.reload(changes)
            view(Progress("reload", "starting processes again", 1, 1))
        return DONE


def _statuses(address: str) -> list[EngineStatus]:
    """Return the statuses of the engines at an address; none if no engine runs there.

    Raises EngineError if one runs and does not answer.
    """
    try:
        watcher = Watcher(address)
    except EngineError:
        return []
    with watcher:
        return engine_statuses(address, watcher.snapshot())
