"""`expertflow serve`: an engine that runs until it is stopped."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from msgspec import Meta

from ...errors import UsageError
from ...ipc.stage.logs import LogSpec
from ..client.address import is_remote
from ..command_line.base import DONE
from ..engine.starting import EngineHandle, engine_remarks, running_engine
from ..http.front import HttpFront
from ..metrics.server import MetricsServer
from ..monitor.tables import result_console
from ..plan.keeping import keep_run
from ..remote.front import RemoteFront
from ..service.announcing import announced
from ..service.stop_signals import StopSignals, stop_signals
from ..service.systemd import READY, STOPPING, notify
from .common.log_options import LogCommand
from .serve_http import HttpCommand, answering, progress_of

WAIT_S, POLL_S = 1.0, 0.1
PATIENCE = "stopping, open requests have {:g} s; once more stops at once"


Server = HttpFront | MetricsServer | RemoteFront


@dataclass(frozen=True, kw_only=True)
class Serve(LogCommand, HttpCommand):
    """Start an engine for a model and keep it running until Ctrl-C or SIGTERM; clients connect to its address.

    Several devices get an engine each, behind one address.
    """

    chooses_memory: ClassVar = True
    option_groups: ClassVar = {"Server": ("address", "keys", "address_file", "pid_file", "metrics", "drain")}
    address: Annotated[str, tyro.conf.arg(metavar="PATH|tcp://HOST:PORT")] = ""
    """Fixed address: the path of a private folder, made at the start and removed at the end. Without it every start has
    another address. tcp://HOST:PORT lets in clients of other machines that have keys
    (docs/how-to/serve-over-tcp.md)."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder with the server's keys and those of the clients that it lets in over TCP; expertflow keys makes it."""
    address_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the address to this file once the engine is ready, for scripts; removed at the end."""
    pid_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the process id to this file at the start; removed at the end. SIGTERM to it ends the engine."""

    metrics: Annotated[str | None, tyro.conf.arg(metavar="[HOST:]PORT")] = None
    """Serve metrics for Prometheus there, without a key (docs/how-to/monitor-with-prometheus.md); with --http, the HTTP
    server has them at /metrics anyway. Without a host only this machine reaches it."""

    drain: Annotated[float, Meta(ge=0, le=10**6), tyro.conf.arg(metavar="SECONDS")] = 5.0
    """Time that open requests have to end after SIGTERM or Ctrl-C; nothing new is accepted meanwhile. A second signal
    stops at once."""

    def run(self) -> int:
        with (
            announced(self.pid_file, str(os.getpid())),
            self.log() as log,
            self.http_front(log) as front,
            nullcontext() if self.metrics is None else MetricsServer(self.metrics) as metrics,
            self._remote_front(log) as remote,
            running_engine(self.engine, "" if remote else self.address, progress_of(front), log) as engine,
        ):
            with (
                stop_signals(PATIENCE.format(self.drain)) as signals,
                announced(self.address_file, engine.address),
                answering(front, engine.address),
            ):
                if metrics is not None:
                    metrics.serve(engine.address)
                if remote is not None:
                    remote.serve(engine.address)
                _print_addresses(engine, front, metrics, remote)
                notify(READY)
                self._serve(engine, signals, [each for each in (front, metrics, remote) if each is not None])
                notify(STOPPING)
                keep_run(engine)
            if signals.interrupted:
                raise KeyboardInterrupt
        return DONE

    def _remote_front(self, log: LogSpec) -> AbstractContextManager[RemoteFront | None]:
        """Return the proxy for remote clients; None inside without an address over TCP. Raises UsageError."""
        if is_remote(self.address):
            if len(self.engine.devices) > 1:
                raise UsageError("over TCP there is one device", "--address", "Start an engine for each, or use --http")
            return RemoteFront(self.address, self.keys, log)
        if self.keys is not None:
            raise UsageError("are for an address over TCP", "--keys", "Give --address tcp://HOST:PORT")
        return nullcontext()

    def _serve(self, engine: EngineHandle, signals: StopSignals, servers: list[Server]) -> None:
        """Serve until the engine ends or is asked to; then finish open requests, at most for `drain` seconds."""
        while not (signals.asked.is_set() or engine.wait(WAIT_S)):
            for server in servers:
                server.check()
        if signals.asked.is_set():
            engine.begin_to_drain(self.drain)
            while not (signals.urged.is_set() or engine.wait(POLL_S)):
                continue


def _print_addresses(
    engine: EngineHandle, front: HttpFront | None, metrics: MetricsServer | None, remote: RemoteFront | None
) -> None:
    console = result_console()
    console.print(f"Ready: {engine.config.model}", soft_wrap=True)
    if len(engine.config.devices) > 1:
        console.print(f"Engines: {', '.join(engine.config.devices)}", soft_wrap=True)
    if engine.choice:
        console.print(f"Expert memory: {engine.choice}", soft_wrap=True)
    for remark in engine_remarks(engine):
        console.print(remark, soft_wrap=True)
    if front is not None:
        console.print(f"HTTP: {front.url}/v1", soft_wrap=True)
        console.print(f"Page: {front.url}/", soft_wrap=True)
    if (url := metrics.url if metrics else f"{front.url}/metrics" if front else "") != "":
        console.print(f"Metrics: {url}", soft_wrap=True)
    if remote is not None:
        console.print(f"Remote: {remote.address}", soft_wrap=True)
    console.print(f"Address: {engine.address}", soft_wrap=True)
    console.print(f'Generate: expertflow generate --address {engine.address} --prompt "…"', soft_wrap=True)
    console.print(f'Python: expertflow.Client("{engine.address}")', soft_wrap=True)
    console.print(f"Watch: expertflow top --address {engine.address}", soft_wrap=True)
    console.print("Stop: Ctrl-C", soft_wrap=True)
