"""Gates in a safetensors file, with the facts of their model in its metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...configs.decoding import UNDECODABLE
from ...errors import UsageError
from ..checkpoint.survey import Survey
from .network import Gates

KIND, VERSION = "expertflow-gates", 1
REMEDY = "Train gates on a trace of this model: expertflow train FOLDER --kind gates --out FILE"


class GateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of gates, and the `fingerprint` of the model for which they were trained."""

    fingerprint: str
    layers: int
    experts: int
    top_k: int
    width: int
    bottleneck: int
    version: int = VERSION

    def make(self) -> Gates:
        """Return untrained gates of these sizes."""
        return Gates(self.layers, self.width, self.experts, self.bottleneck)


def save_gates(gates: Gates, facts: GateFacts, file: Path) -> None:
    """Write `file` atomically. Raises UsageError if it cannot be written."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    metadata = {"format": "pt", "kind": KIND, "facts": msgspec.json.encode(facts).decode()}
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in gates.state_dict().items()}, fresh, metadata)
        fresh.rename(file)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise UsageError(f"cannot be written ({error})", str(file), "Give another file") from error


def load_gates(file: str | Path, survey: Survey) -> Gates:
    """Return the gates in a file, for a surveyed model.

    Raises UsageError if the file holds no gates, or gates of another model.
    """
    facts, tensors = _read(Path(file))
    if (facts.fingerprint, facts.layers, facts.experts) != (survey.fingerprint, survey.layers, survey.experts):
        what = f"these gates were trained for another model (fingerprint {facts.fingerprint}, not {survey.fingerprint})"
        raise UsageError(what, str(file), REMEDY)
    try:
        with torch.device("meta"):  # no memory for sizes that are only stated
            gates = facts.make()
        gates.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"its tensors are not those of gates ({error})", str(file), REMEDY) from error
    return gates.requires_grad_(False).eval()


def _read(file: Path) -> tuple[GateFacts, dict[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            facts = _facts(opened.metadata() or {}, file)
            return facts, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot be read as gates ({error})", str(file), REMEDY) from error


def _facts(metadata: dict[str, Any], file: Path) -> GateFacts:
    if metadata.get("kind") != KIND:
        raise UsageError("holds no gates", str(file), REMEDY)
    try:
        facts = msgspec.json.decode(metadata.get("facts", ""), type=GateFacts)
    except UNDECODABLE as error:
        raise UsageError(f"holds gates without their sizes ({error})", str(file), REMEDY) from error
    if facts.version > VERSION:
        raise UsageError(f"holds gates of version {facts.version}, newer than {VERSION}", str(file), REMEDY)
    return facts
