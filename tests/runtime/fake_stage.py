"""A stage that does nothing but talk. $FAKE says how it misbehaves; what it hears of peers it publishes as counters."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from expertflow.errors import BudgetError, CheckpointError
from expertflow.ipc.messages import (
    AskSurvey,
    DropUnit,
    Filled,
    Message,
    PredictStep,
    Progress,
    Released,
    Stepped,
    StepPrediction,
    StepRouting,
)
from expertflow.ipc.stage.entry import run_stage
from expertflow.ipc.stage.events import PeerJoined, Received
from expertflow.ipc.stage.stage import Stage
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import Survey


def survey(asked: AskSurvey, report: Callable[[Progress], None]) -> Survey:
    match os.environ.get("FAKE"):
        case "refuse survey":
            raise CheckpointError("is broken", asked.model, "Mend it")
        case "file too short in survey":
            raise EOFError("too short")
        case "bug in survey":
            raise ValueError("oh no")
        case "die in survey":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang in survey":
            time.sleep(60)
        case "download":
            report(Progress("checkpoint", f"downloading {asked.model}", 3, 7))
    return fake_survey()


prepared = ""
"""The folder that this process was told to prepare for, if it was."""


def prepare(folder: str) -> None:
    global prepared  # noqa: PLW0603 - one process, one stage
    if os.environ.get("FAKE") == "slow to prepare":
        time.sleep(0.5)
    prepared = folder


def main(stage: Stage) -> None:
    behave(os.environ.get("FAKE", ""), stage)
    device = {"device": stage.config.device} if stage.config.on_device else {}
    stage.ready({"pid": os.getpid(), "prepared": prepared, **device})
    if os.environ.get("FAKE") == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    counters: dict[str, int | float] = {}
    while stage.running:
        for event in stage.poll(1000):
            match event:
                case PeerJoined(peer, epoch):
                    counters[f"{peer} joined"] = epoch
                    for message in greetings(stage.spec.stage, peer, stage.spec.epoch):
                        stage.send(peer, message)
                case Received(source, message):
                    counters[f"{source} said"] = number_in(message)
        with stage.span("turn", lane=1):
            stage.publish(done=len(counters), counters=counters)


def behave(how: str, stage: Stage) -> None:
    match how:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.stderr.write("the last straw\n")
            os._exit(7)
        case "refuse":
            raise BudgetError("needs 9 GB, has 1 GB", "KV caches", "Lower kv_memory")
        case "bug":
            raise ValueError("an unexpected thing")
        case "hang":
            time.sleep(60)
        case "die again" if stage.spec.epoch > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if stage.spec.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow again" if stage.spec.epoch > 1:
            time.sleep(3)
        case "progress":
            stage.progress("warming up", 1, 2)


def greetings(stage: str, peer: str, epoch: int) -> list[Message]:
    """A message with our epoch in it, where this stage has something to say to that peer."""
    used = StepRouting(
        step=epoch, token_ids=[], rows=[], positions=[], top_k=1, experts=b"", hits=0, misses=0, stall_ns=0
    )
    stepped = Stepped(number=epoch, unit=0, rows=[], tokens=[], busy_ns=0, stall_ns=0, kv_bytes=0)
    said: dict[tuple[str, str], Message] = {
        ("scheduler", "compute"): DropUnit(epoch),
        ("scheduler", "predictor"): PredictStep(step=epoch, token_ids=[], rows=[], positions=[]),
        ("predictor", "loader"): StepPrediction(epoch, b""),
        ("loader", "predictor"): used,
        ("loader", "compute"): Filled(epoch, 0, 0),
        ("compute", "loader"): Released([epoch], 0, 0),
        ("compute", "scheduler"): stepped,
    }
    return [said[stage, peer]] if (stage, peer) in said else []


def number_in(message: Message) -> int:
    match message:
        case DropUnit(unit=number) | Filled(slot=number) | Released(slots=[number]):
            return number
        case PredictStep(step=number) | StepPrediction(step=number) | StepRouting(step=number) | Stepped(number=number):
            return number
    return -1


if __name__ == "__main__":
    run_stage(main, survey, prepare)
