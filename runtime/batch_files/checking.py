"""Checks every line of a file of requests without running one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...ipc.messages import Welcome
from ...workers.checkpoint.config_file import read_config
from ..engine.preflight import UNKNOWN
from ..openai.model import ServedModel
from ..text.codec import TextCodec
from .calls import NO_DEFAULTS, Defaults, Failed, read_call
from .store import IndexedInput


def check_lines(given: IndexedInput, model: ServedModel, defaults: Defaults = NO_DEFAULTS) -> Iterator[tuple[int, str]]:
    """Yield the number and the fault of every line that would end in an error before it ran, in order."""
    faults = ((number, fault.message) for _, number, fault in given.faults())
    yield from heapq.merge(faults, _check_bodies(given, model, defaults))


def _check_bodies(given: IndexedInput, model: ServedModel, defaults: Defaults) -> Iterator[tuple[int, str]]:
    for row, number, _ in given.index.lines(given.index.open_rows):
        read = read_call(given.request(row), model, "", 0, defaults)
        if isinstance(read, Failed):
            yield number, message_of(read)


def stated_facts(folder: Path) -> Welcome:
    """Return the limits of a model as config.json states them; an engine may have a shorter context.

    Raises CheckpointError if it cannot be read.
    """
    config = read_config(folder)
    vocabulary, context = _largest(config, "vocab_size"), _largest(config, "max_position_embeddings")
    return Welcome(model=str(folder), vocabulary=vocabulary, context=context, eos_ids=[], queue_limit=1)


def served_model(facts: Welcome, names: Sequence[str] = (), others: Sequence[str] = ()) -> ServedModel:
    """Return the model with the names that bodies may give: `names`, that of its folder, and `others`.

    The first one stands in results of bodies that name none.
    """
    return ServedModel((*names, Path(facts.model).name, *others), facts, TextCodec(facts.model))


def message_of(failure: Failed) -> str:
    """Return the message of a failure."""
    return msgspec.json.decode(failure.body)["error"]["message"]


def _largest(config: dict[str, Any], name: str) -> int:
    """Return the largest number of this name in a configuration and those nested in it; `UNKNOWN` if there is none."""
    nested = [_largest(part, name) for part in config.values() if isinstance(part, dict)]
    own = [config[name]] if isinstance(config.get(name), int) else []
    return max([size for size in nested if size != UNKNOWN] + own, default=UNKNOWN)
