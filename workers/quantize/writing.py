"""Writes the quantised copy of a checkpoint: streaming, resumable, complete or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..checkpoint.shards import ReportProgress, check_destination, copy_other_files, name_failures, write_shards
from ..checkpoint.stamps import FileStamp
from .errors import LayerErrors
from .mixing import NARROW_BITS, Mixture, measure_costs
from .plan import Precision, QuantisePlan
from .unfinished import STATE, unfinished_folder

COSTS = "costs.jsonl"
ORDER = 2
"""Rises when tensors are written in another order: files of an earlier one do not belong to the same copy."""


@dataclass(frozen=True)
class MixedCopy:
    """Result of a mixed quantisation, by decoder layer."""

    errors: dict[int, float]
    """Relative error of the experts as they were written: the root of squared errors over squares."""
    costs: dict[int, float]
    """Estimated square of the error that 4 bits would bring into a token's state, over the square of that state."""
    wide: tuple[int, ...]
    """Layers in 8 bits."""


def quantise_checkpoint(
    source: Path, destination: Path, precision: Precision, progress: ReportProgress
) -> dict[int, float]:
    """Write to `destination` a copy of the model folder `source` with quantised experts; the rest stays as it is.

    One expert is held at a time. `destination` appears only when complete. What an earlier call left unfinished (in
    `.NAME.unfinished` beside it) is used where source and precision are the same. Returns the relative error of each
    layer's experts, by its number: the root of squared errors over squares. Raises CheckpointError if the source is
    broken or changes meanwhile. Raises UsageError if the experts cannot be quantised, `destination` exists or cannot be
    written, its disk is too small, or another run writes it.
    """
    copy = _Copy(source, destination)
    plan = QuantisePlan(source, precision, copy.errors.add)
    made_from = {"bits": precision.bits, "group": precision.group, "wide": precision.wide}
    with copy.begin(plan.count_bytes, made_from):
        return copy.write(plan, progress)


def quantise_mixed(
    source: Path, destination: Path, group: int, mixture: Mixture, progress: ReportProgress
) -> MixedCopy:
    """Write a copy in 4 bits whose dearest layers have 8, as many as `mixture` allows; raises as the other.

    Every expert of the trace is first rounded to 4 bits and measured. What an earlier call measured and wrote is used
    where the mixture is the same, too.
    """
    copy = _Copy(source, destination)
    plain = QuantisePlan(source, Precision(NARROW_BITS, group))
    any_layers = tuple(mixture.importance.layers[: mixture.wide_count])
    count_bytes = QuantisePlan(source, Precision(NARROW_BITS, group, any_layers)).count_bytes
    with copy.begin(count_bytes, {"group": group, "mixture": _digest(mixture)}):
        costs = measure_costs(plain.matrices, group, mixture.importance, copy.unfinished / COSTS, progress)
        precision = Precision(NARROW_BITS, group, mixture.choose(costs))
        return MixedCopy(copy.write(QuantisePlan(source, precision, copy.errors.add), progress), costs, precision.wide)


class _Copy:
    """A copy under way, in a folder of its own beside the destination."""

    def __init__(self, source: Path, destination: Path) -> None:
        self._source, self._destination = source, destination
        self.unfinished = destination.parent / f".{destination.name}.unfinished"
        self._stamps = _stamps(source)
        self.errors = LayerErrors(self.unfinished / "errors.jsonl")

    @contextmanager
    def begin(self, count_bytes: int, made_from: dict[str, Any]) -> Iterator[None]:
        """Hold the folder; what is in it is kept if it was made from the same source, and the same as now."""
        check_destination(self._source, self._destination, 0 if self.unfinished.exists() else count_bytes)
        state = made_from | {"order": ORDER, "files": self._stamps}
        with name_failures(self._destination.parent), unfinished_folder(self.unfinished, state):
            yield

    def write(self, plan: QuantisePlan, progress: ReportProgress) -> dict[int, float]:
        """Write all files, and give the folder its name. Returns the relative error of each layer."""
        write_shards(self.unfinished, plan.tensors, "quantising", progress)
        (self.unfinished / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
        copy_other_files(self._source, self.unfinished)
        if _stamps(self._source) != self._stamps:
            what = "was changed while it was copied"
            raise CheckpointError(what, str(self._source), "Give the same command again: it begins anew")
        by_layer = self.errors.by_layer()
        self.unfinished.rename(self._destination)
        for name in (STATE, COSTS, self.errors.file.name):  # behind the name: a run killed between them is complete
            (self._destination / name).unlink(missing_ok=True)
        return by_layer


def _stamps(source: Path) -> dict[str, str]:
    files = [*sorted(source.glob("*.safetensors")), source / "config.json"]
    return {file.name: str(FileStamp.of(file.stat())) for file in files if file.is_file()}


def _digest(mixture: Mixture) -> str:
    figures = mixture.importance.loads.tobytes() + mixture.importance.contributions.tobytes()
    return hashlib.blake2b(figures + repr(mixture.share).encode(), digest_size=16).hexdigest()
