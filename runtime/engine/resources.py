"""Everything an engine owns besides running stages: directory, shared memory, prestarted processes, the death pipe."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
from msgspec import structs

from ...configs.schema import Config
from ...configs.sizes import format_size
from ...errors import EngineError, UsageError
from ...ipc.messages import Progress
from ...ipc.shared.available import available_bytes
from ...ipc.shared.memory import Arena
from ...ipc.stage.logs import LogSpec
from ...ipc.stage.startup import SharedMemory, StageSpec
from ...workers.checkpoint.survey import Survey
from ...workers.predictor.memory import predictor_bytes
from ...workers.traces.folder import claim_folder
from .budgets import STARTED_BYTES, Budgets, plan_budgets, settle_memory
from .children import Child
from .group_resources import StandaloneResources
from .preflight import require_device
from .prestart import PrestartedStage, Spares
from .stages import StagePlan
from .survey_stage import ReportProgress, run_survey
from .timeline import Timeline

FIRST_EPOCH = 1
HOST, SLOTS = "host", "slots"
CONFIGURATION = "configuration"
"""File in the run directory with the configuration, as JSON; the directory is its owner's alone."""


class Setup(NamedTuple):
    """Things that a reload exchanges: the configuration, and what follows from it for memory and survey."""

    config: Config
    budgets: Budgets
    survey: Survey
    choice: str


class Resources:
    """Resources of one engine, made before any stage gets its spec; closing them leaves nothing behind."""

    def __init__(
        self,
        config: Config,
        report: ReportProgress,
        plans: list[StagePlan],
        verbose: bool = False,
        sharing: StandaloneResources | None = None,
        log: LogSpec | None = None,
    ) -> None:
        """Raises CheckpointError, BudgetError or UsageError; nothing is left behind then."""
        self.config, self._verbose, self._sharing = config, verbose, sharing or StandaloneResources()
        self.log = log or LogSpec()
        require_device(config)
        with ExitStack() as stack:
            if config.trace:
                claim_folder(config.trace)
            if config.record:
                _make_folder(config.record)
            self.timeline = Timeline(config.timeline) if config.timeline else None
            if self.timeline:
                stack.callback(self.timeline.close)
            self.run_dir = self._sharing.make_run_dir()
            stack.callback(self.run_dir.close)
            self._death_fds = os.pipe2(os.O_CLOEXEC)
            for fd in self._death_fds:
                stack.callback(os.close, fd)
            self.arenas: dict[str, Arena] = {}
            stack.callback(self._close_arenas)
            for name in _arena_names(config):
                self.arenas[name] = self._reserve(name)
            self.spares = Spares(self._prestart)
            stack.callback(self.spares.close)
            self._prestarted = {plan.stage: self._prestart_first(plan, stack) for plan in plans}
            survey = self._sharing.survey(lambda: self._make_survey(report, _surveyor(plans)))
            with self._sharing.memory_lock():
                later_bytes = STARTED_BYTES + predictor_bytes(config, survey)
                setup = _plan_setup(config, survey, available_bytes() + self._shared_bytes, later_bytes)
                self.config, self.budgets, self.survey, self.choice = setup
                self._allocate(report)
            self._sharing.on_allocated()
            self.adopt(setup)
            self._stack = stack.pop_all()

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release everything."""
        self._stack.close()

    def start(self, plan: StagePlan, epoch: int) -> Child:
        """Start a stage: in its prestarted process, later in a spare, else in a new process."""
        waiting = self._prestarted.pop(plan.stage, None) or self.spares.take(plan.stage)
        process = waiting or self._prestart(plan, epoch)
        return process.start(self.spec(plan, epoch))

    def spec(self, plan: StagePlan, epoch: int) -> StageSpec:
        """Return the spec of one start of a stage."""
        arenas = [(name, self.arenas[name]) for name in plan.memory if name in self.arenas]
        return StageSpec(
            stage=plan.stage,
            epoch=epoch,
            run_dir=str(self.run_dir.path),
            config=self.config,
            survey_path=str(self._survey_path),
            slots=self.budgets.slots,
            memory={name: SharedMemory(arena.fd, arena.size_bytes) for name, arena in arenas},
            # A successor finds the store as its predecessor left it: no stage is restarted before the store is full.
            host_filled=not self._sharing.fills or epoch > FIRST_EPOCH,
            log=self.log,
            full_fd=self._sharing.store.full_fd if self._sharing.store else -1,
            supervisor_pid=os.getpid(),
            death_fd=self._death_fds[0],
        )

    # Reloads

    @property
    def setup(self) -> Setup:
        """Return the setup in place."""
        return Setup(self.config, self.budgets, self.survey, self.choice)

    def plan_setup(self, config: Config) -> Setup:
        """Return the setup for another configuration. Raises BudgetError with the numbers if it cannot fit.

        Slots and store in place count as free: the slots are exchanged, the store stays. So do not KV caches and
        skeleton, which compute may have taken already: what fits narrowly is refused.
        """
        mine = self.budgets.host_bytes + (0 if config.on_device else self.budgets.slots_bytes)
        return _plan_setup(config, self.survey, available_bytes() + mine, 0)

    def drop_spares(self, setup: Setup) -> None:
        """End processes that wait as spares, if this setup has other slots: they have inherited the descriptor."""
        if self._needs_room(setup):
            self.spares.close()

    def make_room(self, setup: Setup) -> None:
        """Exchange the shared memory of the slots if its size differs; no process may have it any more.

        The old memory goes first, so that both need not fit together. Raises BudgetError; there are no slots then.
        """
        if not self._needs_room(setup):
            return
        self.arenas[SLOTS].close()
        arena = self.arenas[SLOTS] = Arena.reserve(SLOTS)
        try:
            arena.allocate(setup.budgets.slots_bytes)
        except BaseException:
            arena.close()
            self.arenas[SLOTS] = Arena.reserve(SLOTS)
            raise

    def _needs_room(self, setup: Setup) -> bool:
        return SLOTS in self.arenas and self.arenas[SLOTS].size_bytes != setup.budgets.slots_bytes

    def adopt(self, setup: Setup) -> None:
        """Put a setup in place for stages that start from now on."""
        self.config, self.budgets, self.survey, self.choice = setup
        _log_budgets(self.budgets, self.survey)
        _replace_file(self._survey_path, msgspec.msgpack.encode(self.survey))
        _replace_file(self.run_dir.path / CONFIGURATION, msgspec.json.encode(self.config))

    @property
    def _survey_path(self) -> Path:
        return self.run_dir.path / "survey"

    def _make_survey(self, report: ReportProgress, stage: str) -> Survey:
        report(Progress("checkpoint", "surveying the checkpoint", 0, 1))
        survey = run_survey(self._prestarted[stage], self.config, report)
        report(Progress("checkpoint", "surveying the checkpoint", 1, 1))
        return survey

    @property
    def _shared_bytes(self) -> int:
        """Return the bytes of this engine's budget that its group has allocated already."""
        return self._sharing.store.arena.size_bytes if self._sharing.store else 0

    def _reserve(self, name: str) -> Arena:
        if name == HOST and self._sharing.store:
            return self._sharing.store.arena
        return Arena.reserve(name)

    def _close_arenas(self) -> None:
        for name, arena in self.arenas.items():
            if name != HOST or not self._sharing.store:
                arena.close()

    def _prestart_first(self, plan: StagePlan, stack: ExitStack) -> PrestartedStage:
        process = self._prestart(plan, FIRST_EPOCH)
        stack.callback(process.close)
        return process

    def _prestart(self, plan: StagePlan, epoch: int) -> PrestartedStage:
        fds = [self._death_fds[0], *(self.arenas[name].fd for name in plan.memory if name in self.arenas)]
        if self._sharing.store:
            fds.append(self._sharing.store.full_fd)
        if self.log.fd >= 0:
            fds.append(self.log.fd)
        return PrestartedStage(plan, epoch, fds, self._log_of(plan, epoch))

    def _log_of(self, plan: StagePlan, epoch: int) -> Path | None:
        return None if self._verbose else self.run_dir.path / f"{plan.stage}.{epoch}.log"

    def _allocate(self, report: ReportProgress) -> None:
        sizes = {SLOTS: self.budgets.slots_bytes, HOST: self.budgets.host_bytes}
        for name, arena in self.arenas.items():
            if arena.size_bytes:  # shared; the leader allocated it
                continue

            def allocated(done_bytes: int, total_bytes: int, name: str = name) -> None:
                report(Progress("supervisor", f"allocating shared memory '{name}'", done_bytes, total_bytes))

            arena.allocate(sizes[name], allocated)


def _plan_setup(config: Config, survey: Survey, free_bytes: int, later_bytes: int) -> Setup:
    """Return the setup of a configuration, with memory for experts chosen if none is configured.

    `later_bytes` are taken by processes that start later. Raises BudgetError with the numbers.
    """
    config, choice = settle_memory(config, survey, free_bytes, later_bytes)
    if choice:
        logging.getLogger(__name__).info("expert memory: %s", choice)
    budgets = plan_budgets(config, survey, free_bytes)
    # A percentage refers to the memory available now; the stages get bytes.
    config = structs.replace(config, kv_memory=f"{budgets.kv_bytes}B")
    return Setup(config, budgets, survey.lay_out(budgets.slots, config.tier, config.device), choice)


def _replace_file(path: Path, data: bytes) -> None:
    """Write a file that a stage may read at this moment. Raises EngineError, for example on a full disk."""
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_bytes(data)
        unfinished.rename(path)
    except OSError as error:
        raise EngineError(f"cannot be written: {error.strerror}", str(path), "Free space where it lies") from error


def _log_budgets(budgets: Budgets, survey: Survey) -> None:
    words = "budgets: %d of %d experts in slots (%s), KV caches %s, the rest of the model %s, host store %s"
    sizes = (budgets.kv_bytes, budgets.skeleton_bytes, budgets.host_bytes)
    counts = (budgets.slots, survey.expert_count, format_size(budgets.slots_bytes))
    logging.getLogger(__name__).info(words, *counts, *map(format_size, sizes))


def _make_folder(record: str) -> None:
    try:
        Path(record).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", record, "Give another folder for the record") from error


def _arena_names(config: Config) -> list[str]:
    """Return the names of the engine's shared memory; the sizes depend on the survey."""
    if config.on_device:
        return [HOST]
    return [SLOTS, HOST] if config.tier == "host" else [SLOTS]


def _surveyor(plans: list[StagePlan]) -> str:
    surveyors = [plan.stage for plan in plans if plan.surveys]
    if len(surveyors) != 1:
        raise UsageError(f"{len(surveyors)} stages make the survey, not one", "plans", "Set `surveys` in one plan")
    return surveyors[0]
