"""The client of a command: of the engine at `--address`, or of one that the command starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ....configs.schema import AUTO, Config
from ....errors import UsageError
from ...client import Client
from ...client.address import is_remote
from ...engine.starting import EngineHandle, running_engine
from ...plan.keeping import keep_run


@contextmanager
def open_client(config: Config, address: str, keys: Path | None = None) -> Iterator[Client]:
    """Yield a client of the engine at `address`; without one of an engine that ends with it.

    Over TCP with `keys`; then the tokenizer is that of the model of `config`, if it names one.
    """
    if address:
        with Client(address, keys=keys, model=config.model if is_remote(address) else "") as client:
            yield client
    else:
        with remembered_engine(config) as engine, Client(engine.address) as client:
            yield client


@contextmanager
def remembered_engine(config: Config) -> Iterator[EngineHandle]:
    """Yield a running engine, say on stderr which memory was chosen for it, and keep at the end how fast it was."""
    with running_engine(config) as engine:
        if engine.choice:
            sys.stderr.write(f"expert memory: {engine.choice}\n")
        yield engine
        keep_run(engine)


def refuse_engine_options(config: Config, preset: str, address: str = "") -> None:
    """Raise UsageError if there are options of an engine for one that runs already, where they have no effect.

    Over TCP `model` has one: it names a folder here with the tokenizer.
    """
    config = msgspec.structs.replace(config, model="") if is_remote(address) else config
    if _engine_options(config) != _engine_options(Config.load(preset)):
        raise UsageError(
            "options of the engine do not change an engine that runs already",
            "--address",
            "Leave out --address to start an engine with these options, or leave them out",
        )


def _engine_options(config: Config) -> Config:
    """Return the configuration without what a request can say for itself, and what the command chose by itself."""
    memory = Config.load().expert_memory if config.expert_memory == AUTO else config.expert_memory
    return msgspec.structs.replace(config, batch_invariant=False, expert_memory=memory)
