"""Starts an engine, watches it, and ends it: the only thing a person has to hold."""

from __future__ import annotations

import atexit
import queue
from collections.abc import Callable
from types import TracebackType

from ...configs.schema import Config
from ...errors import EngineError, ExpertFlowError, UsageError
from ...ipc.messages import Progress, Snapshot
from ..client.options import require_timeout
from .engine import Ended, Engine, Started
from .group_resources import StandaloneResources
from .preflight import check_before_start, require_config
from .resources import Resources
from .stages import StagePlan, stage_plans

PATIENCE_S = 30.0
"""Beyond `start_timeout_s`: the engine itself says sooner that a stage is late."""


class Supervisor:
    """An engine for one model: `with Supervisor(config) as engine`. It works from scripts, threads and notebooks.

    `on_progress` is called while starting, in the caller's thread. With `verbose` the stages' output goes to our
    stderr; otherwise its end is part of the error when one dies. `plans` replace the processes (tests); `sharing` is
    what a group of engines has in common (`EngineGroup`).
    """

    def __init__(
        self,
        config: Config,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        verbose: bool = False,
        plans: list[StagePlan] | None = None,
        sharing: StandaloneResources | None = None,
    ) -> None:
        require_config(config)
        self.config = config
        self._report = on_progress or (lambda progress: None)
        self._verbose = verbose
        self._plans, self._sharing = plans, sharing
        self._engine: Engine | None = None
        self._address = ""

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where clients and watchers find the engine: its run directory."""
        return self._address

    @property
    def failure(self) -> ExpertFlowError | None:
        """Why the engine has ended by itself, if it has."""
        return self._engine.cause if self._engine else None

    def start(self) -> None:
        """Start all stages and return when every one is ready.

        Raises UsageError, CheckpointError or BudgetError if this model cannot be run so, EngineError if a stage does
        not start; nothing is left behind then.
        """
        if not self.config.model:
            raise UsageError("no model given", "model", "Give the folder of a checkpoint or a hub id")
        if self._engine and not self._engine.join(0):
            raise EngineError("is running already", "engine", "Stop it first")
        if not self._plans:
            check_before_start(self.config)
        plans = self._plans or stage_plans(self.config)
        resources = Resources(self.config, self._report, plans, self._verbose, self._sharing)
        self._address = str(resources.run_dir.path)
        self._engine = Engine(resources, plans)
        atexit.register(self.stop)
        try:
            self._engine.start()
            self._await_start(self._engine)
        except BaseException:  # Ctrl-C too: nothing half-started stays
            self.stop()
            raise

    def stop(self) -> None:
        """Let the stages finish what is in flight, then end them; at most about ten seconds. Does nothing twice."""
        atexit.unregister(self.stop)
        self.begin_to_stop()
        if self._engine:
            self._engine.join()

    def begin_to_stop(self) -> None:
        """Ask for the end, without waiting for it; a start that is under way ends with an error."""
        if self._engine:
            self._engine.stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False if it has not come within this time. Raises the cause if it ended by itself."""
        require_timeout(timeout_s, "timeout_s")
        engine = self._running()
        ended = engine.join(timeout_s)
        if ended and engine.cause:
            raise engine.cause
        return ended

    def kill(self, stage: str) -> None:
        """Kill a stage with SIGKILL, as a demonstration; it is restarted and takes up its work."""
        plans = self._plans or stage_plans(self.config)
        if stage not in [plan.stage for plan in plans]:
            raise UsageError(f"no stage '{stage}'", "kill", f"Stages: {', '.join(plan.stage for plan in plans)}")
        self._running().kill(stage)

    def snapshot(self) -> Snapshot:
        """What every stage published last, and the memory of every process."""
        return self._running().board.snapshot()

    def _running(self) -> Engine:
        if self._engine is None:
            raise EngineError("was not started", "engine", "Call start() or use `with`")
        return self._engine

    def _await_start(self, engine: Engine) -> None:
        while True:
            try:
                news = engine.news.get(timeout=self.config.start_timeout_s + PATIENCE_S)
            except queue.Empty as error:
                raise EngineError("did not start in time", "engine", "Raise start_timeout_s") from error
            match news:
                case Started():
                    return
                case Progress():
                    self._report(news)
                case Ended(cause):
                    raise cause or EngineError("was stopped while starting", "engine")
