"""An engine in threads: the real scheduler shell, a fake compute, and as much supervisor as they need."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec
import zmq
from expertflow.configs.schema import Config
from expertflow.ipc.messages import Peer, Published
from expertflow.ipc.messages.control import FROM_STAGE
from expertflow.ipc.messages.to_compute import COMPUTE_FROM_SCHEDULER
from expertflow.ipc.shared.rundir import RunDir
from expertflow.ipc.stage.stage import Stage
from expertflow.ipc.stage.startup import StageSpec
from expertflow.ipc.transport.addresses import CONTROL, Party, socket_address
from expertflow.ipc.transport.link import Link
from expertflow.ipc.transport.router import Router
from expertflow.ipc.transport.sockets import Context
from expertflow.tests.scheduler.fake_compute import VOCABULARY, FakeCompute
from expertflow.tests.scheduler.world import EOS
from expertflow.workers.checkpoint.survey import RowFacts, Survey
from expertflow.workers.scheduler.limits import ComputeInfo
from expertflow.workers.scheduler.shell import SchedulerShell

FACTS = ComputeInfo(kv_bytes_per_position=10)


def make_survey(folder: Path, vocabulary: int = VOCABULARY, context: int = 64) -> Survey:
    """Of a model that does not exist."""
    return Survey(
        folder=str(folder), model_type="fake", architecture="Fake", dtype="float32", vocabulary=vocabulary,
        context=context, eos_ids=[EOS], layers=1, experts=1, top_k=1, module_names=[], skeleton_bytes=0,
        checkpoint_bytes=0, rows=RowFacts(kv_bytes_per_position=10), files=[], tensors=[], pieces=[], places=b"",
        stride_bytes=1, block_bytes=1,
    )  # fmt: skip


class _AbruptShell(SchedulerShell):
    """One that can end like a killed process: without a word."""

    silent = False

    def _shut_down(self) -> None:
        if self.silent:
            self._clients.close(0)
        else:
            super()._shut_down()


class FakeEngine:
    """A context manager. `paused` holds compute, after `steps_left` steps if that is set.

    `kill_scheduler` and `kill_compute` do what they say.
    """

    def __init__(
        self, folder: Path, config: Config | None = None, vocabulary: int = VOCABULARY, base: Path | None = None
    ) -> None:
        self.config = config or Config(kv_memory="100KB")
        self.run_dir = RunDir.create(base)
        self.address = str(self.run_dir.path)
        self.paused = threading.Event()
        self.steps_left: int | None = None
        self.computes: list[FakeCompute] = []
        self.published: list[Published] = []
        self._survey_path = self.run_dir.path / "survey"
        self._survey_path.write_bytes(msgspec.msgpack.encode(make_survey(folder, vocabulary)))
        self._epochs = {"scheduler": 0, "compute": 0}
        self._stopping = threading.Event()
        self._requests: list[str] = []
        self._scheduler: tuple[threading.Thread, _AbruptShell, Stage] | None = None
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._guard, args=(self._supervise,), name="supervisor")

    def __enter__(self) -> FakeEngine:
        self._thread.start()
        self.start_scheduler()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kill_scheduler(silent=False)
        self._stopping.set()
        self._thread.join(10)
        self.run_dir.close()
        assert not self._errors, self._errors

    @property
    def shell(self) -> SchedulerShell | None:
        """Of the scheduler that runs now."""
        return self._scheduler[1] if self._scheduler else None

    def start_scheduler(self) -> None:
        started = threading.Event()
        self._epochs["scheduler"] += 1
        thread = threading.Thread(target=self._guard, args=(lambda: self._schedule(started),), name="scheduler")
        thread.start()
        assert started.wait(10)

    def kill_scheduler(self, silent: bool = True) -> None:
        if self._scheduler is not None:
            thread, shell, stage = self._scheduler
            self._scheduler = None
            shell.silent = silent
            stage.stop(gently=not silent)
            with suppress(OSError):  # it may have seen the stop, and closed, by itself
                os.write(stage.wake_fd, b"s")
            thread.join(10)

    def kill_compute(self) -> None:
        """Another one joins at once."""
        self._requests.append("compute")

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - shown to the test at its end
            self._errors.append(error)

    def _schedule(self, started: threading.Event) -> None:
        spec = StageSpec(
            stage="scheduler",
            epoch=self._epochs["scheduler"],
            run_dir=self.address,
            config=self.config,
            survey_path=str(self._survey_path),
        )
        with Stage(spec) as stage:
            shell = _AbruptShell(stage)
            self._scheduler = (threading.current_thread(), shell, stage)
            started.set()
            shell.run()

    def _supervise(self) -> None:
        """Answer the stage's Ready with its peer, and be that peer."""
        context: Context = zmq.Context()
        control = Router(context, socket_address(self.address, CONTROL), FROM_STAGE)
        link: Link | None = None
        while not self._stopping.is_set():
            for identity, message in control.receive():
                if isinstance(message, Published):
                    self.published.append(message)
                elif identity == Party("scheduler", self._epochs["scheduler"]).identity:
                    self._requests.append("compute")
            if self._requests:
                self._requests.clear()
                self._epochs["compute"] += 1
                if link is not None:
                    link.close()
                link = self._join_compute(context, control)
            if link is None or not self._work(link):
                time.sleep(0.001)
        if link is not None:
            link.close()
        control.close(0)
        context.destroy(linger=0)

    def _join_compute(self, context: Context, control: Router) -> Link:
        me, peer = Party("compute", self._epochs["compute"]), Party("scheduler", self._epochs["scheduler"])
        self.computes.append(FakeCompute(FACTS))
        link = Link.pair(context, self.address, me, peer, COMPUTE_FROM_SCHEDULER)
        facts: dict[str, int | float | str] = {"kv_bytes_per_position": FACTS.kv_bytes_per_position}
        control.send(peer.identity, Peer("compute", me.epoch, facts))
        return link

    def _work(self, link: Link) -> bool:
        compute = self.computes[-1]
        for message in link.receive():
            compute.receive(message)
        stepped = None if self.paused.is_set() else compute.run_next()
        if stepped is not None:
            link.send(stepped)
            self._count_step()
        return stepped is not None

    def _count_step(self) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.paused.set()
