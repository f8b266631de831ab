"""A group of engines, one a GPU: they share one host store, start and stop together and have one address."""

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
from ...ipc.stage.logs import LogSpec
from ..client.options import require_timeout
from ..client.rolling_reload import Changes, Member, reload_in_turn
from ..client.snapshots import merge_snapshots
from .group_resources import GroupLeader, GroupMember, GroupResources
from .preflight import check_before_start, require_config, require_device
from .stages import StagePlan, compute_threads
from .supervisor import Supervisor

POLL_S = 0.05


class EngineGroup:
    """One engine for each device of `config`, all for one model: `with EngineGroup(config) as group`.

    `Client(group.address)` spreads its requests over them. An engine that ends by itself leaves its requests to the
    others; the group has failed when none is left. Options are those of a `Supervisor`. Several threads call
    `on_progress`, one at a time.
    """

    def __init__(
        self,
        config: Config,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        verbose: bool = False,
        address: str = "",
        plans: list[StagePlan] | None = None,
        log: LogSpec | None = None,
    ) -> None:
        require_config(config)
        self.config = config
        self.engines: dict[str, Supervisor] = {}
        """Device -> its engine, once started."""
        self._on_progress = on_progress or (lambda progress: None)
        self._progress_lock = Lock()
        self._verbose, self._asked_address, self._plans, self._log = verbose, address, plans, log
        self._shared: GroupResources | None = None
        self._address = ""
        self._logged_deaths: set[str] = set()

    def __enter__(self) -> EngineGroup:
        self.start()
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Return the address for clients and watchers: the group's run directory, which contains the engines'."""
        return self._address

    @property
    def failure(self) -> ExpertFlowError | None:
        """Return the cause of the first engine's end, if all engines have ended by themselves; else None."""
        causes = [engine.failure for engine in self.engines.values()]
        return causes[0] if causes and all(causes) else None

    @property
    def choice(self) -> str:
        """Return why expert memory was chosen as it was: it never is, for several devices."""
        return ""

    def start(self) -> None:
        """Start all engines and return when every one is ready. Raises the errors of `Supervisor.start`."""
        if self._shared:
            raise EngineError("is running already", "group", "Stop it first")
        check = require_device if self._plans else check_before_start
        for config in configs_of(self.config):
            check(config)
        self._shared = GroupResources(self.config.tier == "host", self._asked_address)
        self._address = str(self._shared.run_dir.path)
        atexit.register(self.stop)
        try:
            self.engines = self._make_engines(self._shared)
            self._start_all(self._shared)
        except BaseException:  # Ctrl-C too: nothing half-started stays
            self.stop()
            raise

    def reload(self, **changes: str | int | float | bool) -> None:
        """Change fields of the configuration of every engine, one after the other: the others serve meanwhile.

        Fields and errors are those of `Supervisor.reload`. If an engine refuses or fails, its error is raised with its
        device, and those that had changed are changed back. Engines that have ended are left out. Raises EngineError
        if none is left.
        """
        living = {device: engine for device, engine in self.engines.items() if engine.running}
        if not living:
            raise EngineError("no engine of the group is running", "group", "Start it")
        reload_in_turn([Member(device, _reload_of(engine)) for device, engine in living.items()], changes)
        self.config = structs.replace(self.config, **changes)

    def begin_to_drain(self, deadline_s: float) -> None:
        """Let every engine accept nothing new and end once its open requests have, or at the deadline."""
        for engine in self.engines.values():
            engine.begin_to_drain(deadline_s)

    def stop(self) -> None:
        """Stop all engines at once, then close their shared resources. Does nothing the second time."""
        atexit.unregister(self.stop)
        if not self._shared:
            return
        self._begin_to_stop()
        for engine in self.engines.values():
            engine.stop()
        self._shared.close()
        self._shared = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all engines have ended; return False if they have not within `timeout_s`.

        Raises the first cause if they ended by themselves; the end of one engine beside others is logged as a warning.
        """
        require_timeout(timeout_s, "timeout_s")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        causes: list[ExpertFlowError] = []
        for engine in self.engines.values():
            remaining_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            try:
                if not engine.wait(remaining_s):
                    self._log_deaths()
                    return False
            except ExpertFlowError as cause:
                causes.append(cause)
        if causes:
            raise causes[0]
        return True

    def snapshot(self) -> Snapshot:
        """Return one snapshot of all engines, as `Client.stats` does: stages are called DEVICE/STAGE."""
        return merge_snapshots({device: engine.snapshot() for device, engine in self.engines.items()})

    def _make_engines(self, shared: GroupResources) -> dict[str, Supervisor]:
        engines: dict[str, Supervisor] = {}
        for config in configs_of(self.config):
            sharing = GroupMember(shared) if engines else GroupLeader(shared)
            report = self._progress_of(config.device)
            engines[config.device] = Supervisor(
                config, report, verbose=self._verbose, plans=self._plans, sharing=sharing, log=self._log
            )
        return engines

    def _start_all(self, shared: GroupResources) -> None:
        with ThreadPoolExecutor(len(self.engines), "expertflow-start") as pool:
            starts = [pool.submit(engine.start) for engine in self.engines.values()]
            try:
                for start in wait(starts, return_when=FIRST_EXCEPTION).done:
                    start.result()
            except BaseException:
                shared.fail_waiting()
                self._stop_starting(starts)
                raise
        shared.open_attachments([engine.address for engine in self.engines.values()])

    def _stop_starting(self, starts: list[Future[None]]) -> None:
        """Stop all engines until their starts have ended, again and again: an engine may begin to start meanwhile."""
        self._begin_to_stop()
        while wait(starts, POLL_S).not_done:
            self._begin_to_stop()

    def _begin_to_stop(self) -> None:
        for engine in self.engines.values():
            engine.begin_to_stop()

    def _log_deaths(self) -> None:
        causes = {device: engine.failure for device, engine in self.engines.items() if engine.failure}
        for device in causes.keys() - self._logged_deaths:
            left = len(self.engines) - len(causes)
            words = "the engine on %s has ended, %d of %d go on: %s"
            logging.getLogger(__name__).warning(words, device, left, len(self.engines), causes[device])
        self._logged_deaths |= causes.keys()

    def _progress_of(self, device: str) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            with self._progress_lock:
                self._on_progress(structs.replace(progress, stage=f"{progress.stage} ({device})"))

        return report


def _reload_of(engine: Supervisor) -> Callable[[Changes], Changes]:
    return lambda changes: engine.reload(**changes)


def configs_of(config: Config) -> list[Config]:
    """Return the configuration of each engine of a group, with its device and its part of the machine.

    A host store of the whole model is shared by all; another is split evenly, and so are the cores.
    """
    count = len(config.devices)
    host_memory = config.host_memory if config.tier == "host" else _part_of(config.host_memory, count)
    threads = config.compute_threads or max(1, compute_threads(config) // count)
    return [
        structs.replace(config, device=device, host_memory=host_memory, compute_threads=threads)
        for device in config.devices
    ]


def _part_of(size: str, count: int) -> str:
    whole = parse_size(size, "host_memory")
    return f"{100 * (whole.share or 0) / count:f}%" if whole.count_bytes is None else f"{whole.count_bytes // count}B"
