"""Options of `expertflow serve` for its HTTP server, and the server's life beside the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from msgspec import Meta

from ...configs.sizes import parse_memory
from ...errors import UsageError
from ...ipc.messages import Progress
from ...ipc.stage.logs import LogSpec
from ..command_line.base import EngineCommand
from ..http.front import HttpFront
from ..http.options import HttpOptions, read_keys
from ..http.spec import MAX_BODY_BYTES, Limits
from ..openai.model import DEFAULT_MAX_TOKENS
from ..service.listening import read_address


@dataclass(frozen=True, kw_only=True)
class HttpCommand(EngineCommand):
    """A command that may serve HTTP."""

    option_groups: ClassVar = {
        "HTTP": ("http", "api_key", "api_key_file", "served_model_name", "default_max_tokens", "max_body")
    }

    http: Annotated[str | None, tyro.conf.arg(metavar="[HOST:]PORT")] = None
    """Serve OpenAI's API there (docs/how-to/serve-http.md). Without a host only this machine reaches it."""
    api_key: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="KEY")] = field(default_factory=list)
    """Key that clients must send; repeatable. Others see it in the list of processes: better give a file, or the
    environment variable EXPERTFLOW_API_KEY."""
    api_key_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File with a key a line."""
    served_model_name: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="NAME")] = field(
        default_factory=list
    )
    """Name of the model over HTTP; repeatable, answers have the first. By default, its folder or hub id."""
    default_max_tokens: Annotated[int, Meta(ge=1)] = DEFAULT_MAX_TOKENS
    """Longest output of a chat that names no limit; memory is reserved for the whole of it."""
    max_body: Annotated[str, tyro.conf.arg(metavar="SIZE")] = f"{MAX_BODY_BYTES >> 20}MiB"
    """Largest body of a request."""

    def http_options(self) -> HttpOptions | None:
        """Return the options of the HTTP server; None without `--http`. Raises UsageError."""
        if self.http is None:
            return None
        host, port = read_address(self.http)
        return HttpOptions(
            host=host,
            port=port,
            names=self.served_model_name or [self.engine.model],
            keys=read_keys(self.api_key, self.api_key_file),
            default_max_tokens=self.default_max_tokens,
            own_settings=self.engine.generation_settings == "honour",
            limits=Limits(body_bytes=_body_bytes(self.max_body)),
        )

    def http_front(self, log: LogSpec) -> AbstractContextManager[HttpFront | None]:
        """Return the HTTP server, which says that the engine loads; None inside without `--http`."""
        options = self.http_options()
        if options is None:
            return nullcontext()
        if options.is_open:
            what = "--http %s: whoever reaches this machine can use the model; give --api-key-file to ask for a key"
            logging.getLogger(__name__).warning(what, self.http)
        return HttpFront(replace(options, log=log))


@contextmanager
def answering(front: HttpFront | None, address: str) -> Iterator[None]:
    """Let the HTTP server answer with the engine at `address`; end it before the engine ends."""
    if front is not None:
        front.serve(address)
    try:
        yield
    finally:
        if front is not None:
            front.stop()


def progress_of(front: HttpFront | None) -> Callable[[Progress], None]:
    """Return a function that shows the engine's progress at `/ready`."""
    return (lambda progress: None) if front is None else front.on_progress


def _body_bytes(text: str) -> int:
    size = parse_memory(text, "max_body").count_bytes
    if not size:
        raise UsageError("must be a size above 0", "max_body", "Write for example 32MiB")
    return size
