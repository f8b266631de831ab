"""Targets: the decoder of every socket, and the scheduler behind the socket of its clients."""

from __future__ import annotations

from typing import Any

import msgspec
from expertflow.ipc.messages import (
    Cancel,
    Details,
    Hello,
    Sampling,
    Submit,
    control,
    to_client,
    to_compute,
    to_loader,
    to_predictor,
    to_scheduler,
)
from expertflow.ipc.stage import startup
from expertflow.ipc.transport.codec import Unreadable, decode
from expertflow.tests.fuzz.examples import packed_examples
from expertflow.tests.fuzz.target import Target
from expertflow.tests.scheduler.fake_compute import FakeCompute
from expertflow.tests.scheduler.world import make_limits, model_facts
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ComputeInfo
from expertflow.workers.scheduler.state import SchedulerState

DECODERS: dict[str, tuple[Any, Any]] = {
    "client → scheduler": (to_scheduler.FROM_CLIENT, to_scheduler.FromClient),
    "compute → scheduler": (to_scheduler.FROM_COMPUTE, to_scheduler.FromCompute),
    "predictor → scheduler": (to_scheduler.FROM_PREDICTOR, to_scheduler.FromPredictor),
    "scheduler → compute": (to_compute.COMPUTE_FROM_SCHEDULER, to_compute.ComputeFromScheduler),
    "loader → compute": (to_compute.COMPUTE_FROM_LOADER, to_compute.ComputeFromLoader),
    "scheduler → predictor": (to_predictor.PREDICTOR_FROM_SCHEDULER, to_predictor.PredictorFromScheduler),
    "loader → predictor": (to_predictor.PREDICTOR_FROM_LOADER, to_predictor.PredictorFromLoader),
    "compute → loader": (to_loader.LOADER_FROM_COMPUTE, to_loader.LoaderFromCompute),
    "predictor → loader": (to_loader.LOADER_FROM_PREDICTOR, to_loader.LoaderFromPredictor),
    "scheduler → client": (to_client.TO_CLIENT, to_client.ToClient),
    "surveyor → supervisor": (control.FROM_SURVEYOR, control.FromSurveyor),
    "stage → supervisor": (control.FROM_STAGE, control.FromStage),
    "supervisor → stage": (control.TO_STAGE, control.ToStage),
    "watcher → supervisor": (control.FROM_WATCHER, control.FromWatcher),
    "supervisor → watcher": (control.TO_WATCHER, control.ToWatcher),
    "supervisor → new stage": (startup.STARTUP_MESSAGE, startup.StartupMessage),
}
"""Socket -> its decoder, and the union that it decodes."""
INPUTS_A_SCHEDULER = 60


def _submit(request_id: str, prompt_ids: list[int], max_new_tokens: int, **options: Any) -> Submit:
    return Submit(request_id=request_id, prompt_ids=prompt_ids, max_new_tokens=max_new_tokens, **options)


SUBMITS = (
    Hello(),
    _submit("a", [1, 2, 3], 4),
    _submit("b", [1], 1, sampling=Sampling(temperature=1.0, seed=3), deadline_ms=5, details=Details(1, 1, True)),
    _submit("c", [5] * 9, 3, resume_ids=[1, 2], batch_invariant=True, priority=-3, user="u"),
    Cancel("a"),
)


def decoder_targets() -> list[Target]:
    """Return a target for each decoder of a socket."""
    return [_decoder_target(socket, *pair) for socket, pair in DECODERS.items()]


def _decoder_target(socket: str, decoder: Any, union: Any) -> Target:
    return Target(
        socket, lambda folder: lambda data: decode(decoder, data), lambda: packed_examples(union), form="packed"
    )


def scheduler_target() -> Target:
    """Return the target whose inputs a scheduler gets as messages of a client, in the middle of its work."""
    seeds = list(map(msgspec.msgpack.encode, SUBMITS))
    return Target("scheduler's clients", lambda folder: HostileClient(), lambda: seeds, (), "packed")


class HostileClient:
    """Sends each input to a scheduler that works for others, and lets a compute that objects run a step.

    After some inputs, and after an error, there is a fresh scheduler.
    """

    def __init__(self) -> None:
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        facts = ComputeInfo(kv_bytes_per_position=10)
        limits = make_limits(prefix_cache=True, prefill_chunk=3)
        self._now_ns = 1
        self._state = SchedulerState(model_facts(context=40), limits)
        self._compute = FakeCompute(facts, limits.kv_bytes)
        self._do(events.ComputeJoined(self._now_ns, {"kv_bytes_per_position": facts.kv_bytes_per_position}))
        for name in ("one", "two"):
            self._do(events.ClientMessage(b"honest", _submit(name, [1, 2, 3], 30), self._now_ns))

    def __call__(self, data: bytes) -> None:
        """Raise whatever scheduler or compute raise."""
        self._count += 1
        if self._count % INPUTS_A_SCHEDULER == 0:
            self._begin()
        try:
            self._send(data)
        except BaseException:
            self._begin()
            raise

    def _send(self, data: bytes) -> None:
        message = decode(to_scheduler.FROM_CLIENT, data)
        if isinstance(message, Unreadable):
            self._do(events.Unreadable(b"hostile", "", message.reason))
            return
        self._do(events.ClientMessage(b"hostile", message, self._now_ns))
        self._now_ns += 1_000_000
        self._do(events.Tick(self._now_ns))
        if (stepped := self._compute.run_next()) is not None:
            self._do(events.StepDone(stepped, self._now_ns))

    def _do(self, event: events.SchedulerEvent) -> None:
        for action in self._state.handle(event):
            match action:
                case events.ToCompute(message):
                    self._compute.receive(message)
                case events.Send(_, message):
                    msgspec.msgpack.encode(message)  # as the shell does
