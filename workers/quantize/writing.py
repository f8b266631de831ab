"""Writes the quantised copy of a checkpoint: streaming, resumable, complete or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..checkpoint.shards import ReportProgress, check_destination, copy_other_files, write_shards
from ..checkpoint.stamps import FileStamp
from .errors import LayerErrors
from .plan import Precision, QuantisePlan

STATE = "quantise.json"


def quantise_checkpoint(
    source: Path, destination: Path, precision: Precision, progress: ReportProgress
) -> dict[int, float]:
    """Write to `destination` a copy of the model folder `source` with quantised experts; the rest stays as it is.

    One matrix is held at a time. `destination` appears only when complete. What an earlier call left unfinished (in
    `.NAME.unfinished` beside it) is used where source and precision are the same. Returns the relative error of each
    layer's experts, by its number: the root of squared errors over squares. Raises CheckpointError if the source is
    broken. Raises UsageError if the experts cannot be quantised, `destination` exists or its disk is too small.
    """
    unfinished = destination.parent / f".{destination.name}.unfinished"
    errors = LayerErrors(unfinished / "errors.jsonl")
    plan = QuantisePlan(source, precision, errors.add)
    check_destination(source, destination, 0 if unfinished.exists() else plan.count_bytes)
    _begin(unfinished, _state(source, precision))
    write_shards(unfinished, plan.tensors, "quantising", progress)
    (unfinished / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
    copy_other_files(source, unfinished)
    by_layer = errors.by_layer()
    for name in (STATE, errors.file.name):
        (unfinished / name).unlink(missing_ok=True)
    unfinished.rename(destination)
    return by_layer


def _state(source: Path, precision: Precision) -> dict[str, Any]:
    """Return what an unfinished copy must have been made from to be used."""
    files = sorted(source.glob("*.safetensors")) + [source / "config.json"]
    stamps = {file.name: str(FileStamp.of(file.stat())) for file in files}
    return {"bits": precision.bits, "group": precision.group, "files": stamps}


def _begin(unfinished: Path, state: dict[str, Any]) -> None:
    file = unfinished / STATE
    if file.exists() and json.loads(file.read_text()) == state:
        return
    if unfinished.exists():
        if not file.exists() and any(unfinished.iterdir()):
            what = "is in the way, and was not left by an unfinished quantisation"
            raise UsageError(what, str(unfinished), "Remove it")
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    file.write_text(json.dumps(state))
