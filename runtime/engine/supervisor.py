"""The handle of one engine for its user: starts it, watches it and ends it."""

from __future__ import annotations

import atexit
import queue
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

from ...configs.schema import Config
from ...errors import EngineError, ExpertFlowError, UsageError
from ...ipc.messages import OrderEnded, Progress, Snapshot
from ...ipc.stage.logs import LogSpec
from ..client.options import require_timeout
from ..client.rolling_reload import Changes
from .engine import Engine
from .group_resources import StandaloneResources
from .operation.updates import Ended, Started
from .orders import DrainOrder, ReloadOrder
from .preflight import check_before_start, require_config
from .resources import Resources
from .stages import StagePlan, stage_plans

START_MARGIN_S = 30.0
"""Seconds beyond `start_timeout_s`, within which the engine itself reports a late stage."""
DRAIN_S = 30.0
"""Seconds for which a drain waits for open requests, unless others are named."""
ANSWER_POLL_S = 0.5


class Supervisor:
    """An engine for one model: `with Supervisor(config) as engine`. It works from scripts, threads and notebooks.

    `on_progress` is called while starting, in the caller's thread. With `verbose` the stages' output goes to our
    stderr; otherwise the error of a dead stage quotes its end. `address` is the path at which the run directory is to
    be made; without it a fresh name is taken. `log` says where all processes log; without it only warnings are shown.
    `plans` replace the processes (tests); `sharing` are the resources shared with an `EngineGroup`.
    """

    def __init__(
        self,
        config: Config,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        verbose: bool = False,
        address: str = "",
        plans: list[StagePlan] | None = None,
        sharing: StandaloneResources | None = None,
        log: LogSpec | None = None,
    ) -> None:
        require_config(config)
        self.config = config
        self._on_progress = on_progress or (lambda progress: None)
        self._verbose, self._log = verbose, log
        self._plans, self._sharing = plans, sharing or StandaloneResources(address)
        self._engine: Engine | None = None
        self._address = ""

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Return the address for clients and watchers: the engine's run directory."""
        return self._address

    @property
    def failure(self) -> ExpertFlowError | None:
        """Return the cause if the engine has ended by itself; else None."""
        return self._engine.cause if self._engine else None

    @property
    def running(self) -> bool:
        """Return whether the engine was started and has not ended."""
        return self._engine is not None and not self._engine.join(0)

    @property
    def resources(self) -> Resources:
        """Return what the engine was given: survey, budgets, and why its memory was chosen.

        Raises EngineError if the engine was not started.
        """
        return self._require_engine().resources

    @property
    def choice(self) -> str:
        """Return why expert memory was chosen as it was; empty if it was configured."""
        return self.resources.choice

    def start(self) -> None:
        """Start all stages and return when every one is ready.

        Raises UsageError, CheckpointError or BudgetError if the model cannot run with this configuration, EngineError
        if a stage does not start; nothing is left behind then.
        """
        if not self.config.model:
            raise UsageError("no model given", "model", "Give the folder of a checkpoint or a hub id")
        if self._engine and not self._engine.join(0):
            raise EngineError("is running already", "engine", "Stop it first")
        if not self._plans:
            check_before_start(self.config)
        plans = self._plans or stage_plans(self.config)
        resources = Resources(self.config, self._on_progress, plans, self._verbose, self._sharing, self._log)
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
        """Let the stages finish the work in flight, then end them, within about ten seconds. Can be called twice."""
        atexit.unregister(self.stop)
        self.begin_to_stop()
        if self._engine:
            self._engine.join()

    def begin_to_stop(self) -> None:
        """Ask for the end, without waiting for it; a start that is under way ends with an error."""
        if self._engine:
            self._engine.stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return False if it has not come within `timeout_s`.

        Raises the cause if the engine ended by itself, EngineError if it was not started.
        """
        require_timeout(timeout_s, "timeout_s")
        engine = self._require_engine()
        ended = engine.join(timeout_s)
        if ended and engine.cause:
            raise engine.cause
        return ended

    def drain(self, deadline_s: float = DRAIN_S) -> int:
        """Accept no new request, finish those that were accepted, and stop; return when the engine has ended.

        Returns the number of requests that were not done after `deadline_s`: these end with a typed error.
        Raises EngineError if the engine ends by itself meanwhile, or was not started.
        """
        answered: SimpleQueue[OrderEnded] = SimpleQueue()
        engine = self._require_engine()
        require_timeout(deadline_s, "deadline_s")
        engine.order(DrainOrder(deadline_s, answered.put))
        engine.join()
        atexit.unregister(self.stop)
        if engine.cause:
            raise engine.cause
        return 0 if answered.empty() else answered.get().unfinished

    def begin_to_drain(self, deadline_s: float) -> None:
        """Begin as `drain`, without waiting for the end."""
        self._require_engine().order(DrainOrder(deadline_s, lambda answer: None))

    def reload(self, **changes: str | int | float | bool) -> Changes:
        """Change fields of the configuration of the running engine; return their earlier values once that is done.

        Which fields: `RELOADABLE` (runtime/engine/operation/changes.py). The stages that read them are started again
        between two steps. No request is lost, and no output changes. Raises UsageError for a field or a value that is
        not possible and BudgetError with the numbers for what cannot fit; nothing has changed then. If the new setup
        does not come up, the old one is put back in place, and the cause is raised.
        """
        answered: SimpleQueue[OrderEnded] = SimpleQueue()
        self._require_engine().order(ReloadOrder(dict(changes), answered.put))
        answer = self._await_answer(answered)
        if answer.error is not None:
            raise answer.error.to_error()
        self.config = self.resources.config
        return answer.previous

    def kill(self, stage: str) -> None:
        """Kill a stage with SIGKILL, as a demonstration; it is restarted. Raises UsageError for an unknown stage."""
        plans = self._plans or stage_plans(self.config)
        if stage not in [plan.stage for plan in plans]:
            raise UsageError(f"no stage '{stage}'", "kill", f"Stages: {', '.join(plan.stage for plan in plans)}")
        self._require_engine().kill(stage)

    def snapshot(self) -> Snapshot:
        """Return the last statistics of every stage and the memory of every process.

        Raises EngineError if the engine was not started.
        """
        return self._require_engine().board.snapshot()

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("was not started", "engine", "Call start() or use `with`")
        return self._engine

    def _await_answer(self, answered: SimpleQueue[OrderEnded]) -> OrderEnded:
        """Return the answer to an order. Raises EngineError if the engine had ended before."""
        while True:
            try:
                return answered.get(timeout=ANSWER_POLL_S)
            except queue.Empty:
                if self._require_engine().join(0) and answered.empty():
                    raise EngineError("has ended", "engine", "Start it again") from None

    def _await_start(self, engine: Engine) -> None:
        while True:
            try:
                update = engine.updates.get(timeout=self.config.start_timeout_s + START_MARGIN_S)
            except queue.Empty as error:
                raise EngineError("did not start in time", "engine", "Raise start_timeout_s") from error
            match update:
                case Started():
                    return
                case Progress() as progress:
                    self._on_progress(progress)
                case Ended(cause):
                    raise cause or EngineError("was stopped while starting", "engine")
