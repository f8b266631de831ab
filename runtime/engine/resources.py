"""Everything an engine owns besides running stages: directory, shared memory, prestarted processes, the death pipe."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import structs

from ...configs.schema import Config
from ...configs.sizes import format_size
from ...errors import UsageError
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
HOST = "host"
CONFIGURATION = "configuration"
"""File in the run directory with the configuration, as JSON; the directory is its owner's alone."""


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
            self.arenas = {name: self._reserve(name, stack) for name in _arena_names(config)}
            self.spares = Spares(self._prestart)
            stack.callback(self.spares.close)
            self._prestarted = {plan.stage: self._prestart_first(plan, stack) for plan in plans}
            survey = self._sharing.survey(lambda: self._make_survey(report, _surveyor(plans)))
            with self._sharing.memory_lock():
                free_bytes = available_bytes() + self._shared_bytes
                config = self._settle(config, survey, free_bytes)
                self.budgets = plan_budgets(config, survey, free_bytes)
                _log_budgets(self.budgets, survey)
                self._allocate(report)
            self._sharing.on_allocated()
            self.survey = survey.lay_out(self.budgets.slots, config.tier, config.device)
            self._survey_path.write_bytes(msgspec.msgpack.encode(self.survey))
            # A percentage refers to the memory available now; the stages get bytes.
            self.config = structs.replace(config, kv_memory=f"{self.budgets.kv_bytes}B")
            (self.run_dir.path / CONFIGURATION).write_bytes(msgspec.json.encode(self.config))
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

    @property
    def _survey_path(self) -> Path:
        return self.run_dir.path / "survey"

    def _settle(self, config: Config, survey: Survey, free_bytes: int) -> Config:
        """Choose the memory for experts if none is configured; `choice` says why."""
        later_bytes = STARTED_BYTES + predictor_bytes(config, survey)
        config, self.choice = settle_memory(config, survey, free_bytes, later_bytes)
        if self.choice:
            logging.getLogger(__name__).info("expert memory: %s", self.choice)
        return config

    def _make_survey(self, report: ReportProgress, stage: str) -> Survey:
        report(Progress("checkpoint", "surveying the checkpoint", 0, 1))
        survey = run_survey(self._prestarted[stage], self.config, report)
        report(Progress("checkpoint", "surveying the checkpoint", 1, 1))
        return survey

    @property
    def _shared_bytes(self) -> int:
        """Return the bytes of this engine's budget that its group has allocated already."""
        return self._sharing.store.arena.size_bytes if self._sharing.store else 0

    def _reserve(self, name: str, stack: ExitStack) -> Arena:
        if name == HOST and self._sharing.store:
            return self._sharing.store.arena
        arena = Arena.reserve(name)
        stack.callback(arena.close)
        return arena

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
        sizes = {"slots": self.budgets.slots_bytes, HOST: self.budgets.host_bytes}
        for name, arena in self.arenas.items():
            if arena.size_bytes:  # shared; the leader allocated it
                continue

            def allocated(done_bytes: int, total_bytes: int, name: str = name) -> None:
                report(Progress("supervisor", f"allocating shared memory '{name}'", done_bytes, total_bytes))

            arena.allocate(sizes[name], allocated)


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
    return ["slots", HOST] if config.tier == "host" else ["slots"]


def _surveyor(plans: list[StagePlan]) -> str:
    surveyors = [plan.stage for plan in plans if plan.surveys]
    if len(surveyors) != 1:
        raise UsageError(f"{len(surveyors)} stages make the survey, not one", "plans", "Set `surveys` in one plan")
    return surveyors[0]
