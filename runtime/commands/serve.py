"""`expertflow serve`: an engine that runs until it is stopped."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated

import tyro

from ...errors import UsageError
from ..command_line.base import DONE, EngineCommand
from ..engine.starting import EngineHandle, engine_remarks, running_engine
from ..monitor.tables import result_console

WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Serve(EngineCommand):
    """Start an engine for a model and keep it running until Ctrl-C or SIGTERM; clients connect to its address.

    Several devices get an engine each, behind one address.
    """

    address_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the address to this file once the engine is ready, for scripts; removed at the end."""

    def run(self) -> int:
        with running_engine(self.engine) as engine, _announce(self.address_file, engine.address):
            stop = _stop_on_sigterm()
            _print_addresses(engine)
            while not (stop.is_set() or engine.wait(WAIT_S)):
                continue
        return DONE


def _stop_on_sigterm() -> Event:
    """Return an event that SIGTERM sets from now on: a service is stopped by it, with exit code 0."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    return stop


def _print_addresses(engine: EngineHandle) -> None:
    console = result_console()
    console.print(f"Ready: {engine.config.model}", soft_wrap=True)
    if len(engine.config.devices) > 1:
        console.print(f"Engines: {', '.join(engine.config.devices)}", soft_wrap=True)
    for remark in engine_remarks(engine):
        console.print(remark, soft_wrap=True)
    console.print(f"Address: {engine.address}", soft_wrap=True)
    console.print(f'Generate: expertflow generate --address {engine.address} --prompt "…"', soft_wrap=True)
    console.print(f'Python: expertflow.Client("{engine.address}")', soft_wrap=True)
    console.print(f"Watch: expertflow top --address {engine.address}", soft_wrap=True)
    console.print("Stop: Ctrl-C", soft_wrap=True)


@contextmanager
def _announce(file: Path | None, address: str) -> Iterator[None]:
    """Keep the address in a file, written at once: a reader never sees half of it."""
    if file is None:
        yield
        return
    _write_at_once(file, address + "\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _write_at_once(file: Path, text: str) -> None:
    try:
        fd, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with open(fd, "w", encoding="utf-8") as opened:
            opened.write(text)
        os.replace(fresh, file)
    except OSError as error:
        remedy = "Name a file in a folder of yours"
        raise UsageError(f"cannot be written: {error.strerror}", str(file), remedy) from error
