"""Checkpoints to be broken, and what a refusal must say."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError, ExpertFlowError
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refusal(model: str | Path, what: str, where: str | Path = "", kind: type[ExpertFlowError] = CheckpointError) -> str:
    """The text of the error that a survey must raise; `what` and `where` must stand in their fields."""
    with pytest.raises(kind) as caught:
        survey_checkpoint(str(model))
    assert type(caught.value) is kind
    assert what in caught.value.what
    assert str(where) in caught.value.where
    assert caught.value.where
    assert caught.value.remedy
    return str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


@contextmanager
def no_override() -> Iterator[None]:
    """Root reads what it may not: take that power from this thread for a while. Nothing happens for other users."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(0x20080522, 0)
    kept, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc.capget(ctypes.byref(header), kept)
    libc.capget(ctypes.byref(header), less)
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, effective
    libc.capset(ctypes.byref(header), less)
    try:
        yield
    finally:
        libc.capset(ctypes.byref(header), kept)
