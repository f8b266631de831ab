"""Several GPUs: as many engines, which share one host store, start and stop together and have one address."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Lock
from types import TracebackType

from msgspec import structs

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Progress, Snapshot
from ..client.options import require_timeout
from ..client.snapshots import merge_snapshots
from .device_check import require_device
from .group_resources import GroupLeader, GroupMember, GroupResources
from .preflight import check_before_start, require_config
from .stages import StagePlan, compute_threads
from .supervisor import Supervisor

LOOK_S = 0.05


class EngineGroup:
    """One engine for each device of `config`, all for one model: `with EngineGroup(config) as group`.

    `Client(group.address)` spreads its requests over them. An engine that ends by itself leaves its requests to the
    others; the group has failed when none is left. Options are those of a `Supervisor`; `on_progress` is called from
    several threads, one at a time.
    """

    def __init__(
        self,
        config: Config,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        verbose: bool = False,
        plans: list[StagePlan] | None = None,
    ) -> None:
        require_config(config)
        self.config = config
        self.engines: dict[str, Supervisor] = {}
        """By device, once started."""
        self._report = on_progress or (lambda progress: None)
        self._reporting = Lock()
        self._verbose, self._plans = verbose, plans
        self._common: GroupResources | None = None
        self._address = ""
        self._mourned: set[str] = set()

    def __enter__(self) -> EngineGroup:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where clients and watchers find the group: its run directory, in which those of the engines are."""
        return self._address

    @property
    def failure(self) -> ExpertFlowError | None:
        """Why the first engine that did has ended by itself, when none is left."""
        causes = [engine.failure for engine in self.engines.values()]
        return causes[0] if causes and all(causes) else None

    def start(self) -> None:
        """Start all engines and return when every one is ready; raises what `Supervisor.start` does."""
        if self._common:
            raise EngineError("is running already", "group", "Stop it first")
        check = require_device if self._plans else check_before_start
        for config in configs_of(self.config):
            check(config)
        self._common = GroupResources(whole_store=self.config.tier == "host")
        self._address = str(self._common.run_dir.path)
        atexit.register(self.stop)
        try:
            self.engines = self._make_engines(self._common)
            self._start_all(self._common)
        except BaseException:  # Ctrl-C too: nothing half-started stays
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all engines at once, then give up what they shared. Does nothing twice."""
        atexit.unregister(self.stop)
        if not self._common:
            return
        self._begin_to_stop()
        for engine in self.engines.values():
            engine.stop()
        self._common.close()
        self._common = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all engines have ended; False if that has not come within this time.

        Raises the first cause if they ended by themselves; one that leaves others behind is a warning in the log.
        """
        require_timeout(timeout_s, "timeout_s")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        causes: list[ExpertFlowError] = []
        for engine in self.engines.values():
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            try:
                if not engine.wait(left_s):
                    self._log_deaths()
                    return False
            except ExpertFlowError as cause:
                causes.append(cause)
        if causes:
            raise causes[0]
        return True

    def snapshot(self) -> Snapshot:
        """Of all engines, as `Client.stats` gives it: stages are called DEVICE/STAGE."""
        return merge_snapshots({device: engine.snapshot() for device, engine in self.engines.items()})

    def _make_engines(self, common: GroupResources) -> dict[str, Supervisor]:
        engines: dict[str, Supervisor] = {}
        for config in configs_of(self.config):
            sharing = GroupMember(common) if engines else GroupLeader(common)
            report = self._report_of(config.device)
            engines[config.device] = Supervisor(
                config, report, verbose=self._verbose, plans=self._plans, sharing=sharing
            )
        return engines

    def _start_all(self, common: GroupResources) -> None:
        with ThreadPoolExecutor(len(self.engines), "expertflow-start") as pool:
            starts = [pool.submit(engine.start) for engine in self.engines.values()]
            try:
                for start in wait(starts, return_when=FIRST_EXCEPTION).done:
                    start.result()
            except BaseException:
                common.give_up()
                self._abandon(starts)
                raise
        common.open_attachments([engine.address for engine in self.engines.values()])

    def _abandon(self, starts: list[Future[None]]) -> None:
        """The pool waits for its threads; an engine that has only just begun hears of it the next time."""
        self._begin_to_stop()
        while wait(starts, LOOK_S).not_done:
            self._begin_to_stop()

    def _begin_to_stop(self) -> None:
        for engine in self.engines.values():
            engine.begin_to_stop()

    def _log_deaths(self) -> None:
        ended = {device: engine.failure for device, engine in self.engines.items() if engine.failure}
        for device in ended.keys() - self._mourned:
            left = len(self.engines) - len(ended)
            words = "the engine on %s has ended, %d of %d go on: %s"
            logging.getLogger(__name__).warning(words, device, left, len(self.engines), ended[device])
        self._mourned |= ended.keys()

    def _report_of(self, device: str) -> Callable[[Progress], None]:
        def report(news: Progress) -> None:
            with self._reporting:
                self._report(structs.replace(news, stage=f"{news.stage} ({device})"))

        return report


def configs_of(config: Config) -> list[Config]:
    """Of each engine of a group: its device, its part of what all of them share of the machine.

    A host store of the whole model is one for all; another is split evenly, and so are the cores.
    """
    count = len(config.devices)
    host_memory = config.host_memory if config.tier == "host" else _part_of(config.host_memory, count)
    threads = config.compute_threads or max(1, compute_threads(config) // count)
    return [
        structs.replace(config, device=device, host_memory=host_memory, compute_threads=threads)
        for device in config.devices
    ]


def _part_of(size: str, count: int) -> str:
    given = parse_size(size, "host_memory")
    return f"{100 * (given.share or 0) / count:f}%" if given.count_bytes is None else f"{given.count_bytes // count}B"
