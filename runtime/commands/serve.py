"""`expertflow serve`: an engine that runs until it is stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, ClassVar

import tyro

from ..command_line.base import DONE
from ..engine.starting import EngineHandle, engine_remarks, running_engine
from ..http.front import HttpFront
from ..monitor.tables import result_console
from ..service.announcing import announced
from ..service.systemd import READY, STOPPING, notify
from .serve_http import HttpCommand, answering, progress_of

WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Serve(HttpCommand):
    """Start an engine for a model and keep it running until Ctrl-C or SIGTERM; clients connect to its address.

    Several devices get an engine each, behind one address.
    """

    option_groups: ClassVar = {"Server": ("address", "address_file", "pid_file")}
    address: Annotated[str, tyro.conf.arg(metavar="PATH")] = ""
    """Fixed address: the path of a private folder, made at the start and removed at the end. Without it every start has
    another address."""
    address_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the address to this file once the engine is ready, for scripts; removed at the end."""
    pid_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the process id to this file at the start; removed at the end. SIGTERM to it ends the engine."""

    def run(self) -> int:
        with (
            announced(self.pid_file, str(os.getpid())),
            self.http_front() as front,
            running_engine(self.engine, self.address, progress_of(front)) as engine,
        ):
            stop = _stop_on_sigterm()
            with announced(self.address_file, engine.address), answering(front, engine.address):
                _print_addresses(engine, front)
                notify(READY)
                while not (stop.is_set() or engine.wait(WAIT_S)):
                    if front is not None:
                        front.check()
                notify(STOPPING)
        return DONE


def _stop_on_sigterm() -> Event:
    """Return an event that SIGTERM sets from now on: a service is stopped by it, with exit code 0."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    return stop


def _print_addresses(engine: EngineHandle, front: HttpFront | None) -> None:
    console = result_console()
    console.print(f"Ready: {engine.config.model}", soft_wrap=True)
    if len(engine.config.devices) > 1:
        console.print(f"Engines: {', '.join(engine.config.devices)}", soft_wrap=True)
    for remark in engine_remarks(engine):
        console.print(remark, soft_wrap=True)
    if front is not None:
        console.print(f"HTTP: {front.url}/v1", soft_wrap=True)
    console.print(f"Address: {engine.address}", soft_wrap=True)
    console.print(f'Generate: expertflow generate --address {engine.address} --prompt "…"', soft_wrap=True)
    console.print(f'Python: expertflow.Client("{engine.address}")', soft_wrap=True)
    console.print(f"Watch: expertflow top --address {engine.address}", soft_wrap=True)
    console.print("Stop: Ctrl-C", soft_wrap=True)
