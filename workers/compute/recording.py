"""Writes what compute did, step by step, so that it can be run again: `expertflow verify`, the oracle predictor.

A folder with two files for every start of compute, each a stream of MessagePack messages: `steps.EPOCH.msgpack`
(Split, Forget, and every RunStep followed by its `Stepped`, with a digest of its logits) and
`routes.EPOCH.msgpack` (Used). Beside them the attachments of prompts with images, and the kernel table: another kernel
rounds in another way.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from ...ipc.messages import DropPrefix, DropUnit, KeepPrefix, RunStep, Split, Stepped, StepRouting
from ...ipc.shared.attachments import FOLDER, is_attachment_name
from ...ipc.shared.output_file import OutputFile
from ..kernels.cache import read_table, write_table
from ..kernels.table import KernelTable
from ..model.unit import Unit
from ..traces.message_stream import read_packed
from .sampling.failure import RowFailed
from .sampling.sampler import Chooser

DIGEST_BYTES = 8
KERNELS = "kernels.json"
Order = Split | DropUnit | KeepPrefix | DropPrefix
"""Order that changes units or kept prefixes without a step."""
Recorded = RunStep | Order | Stepped


def digest_rows(logits: torch.Tensor) -> bytes:
    """8 bytes a row of logits [rows, vocabulary]: equal bits, equal digests."""
    raw = logits.contiguous().view(torch.uint8).cpu().numpy()
    return b"".join(hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in raw)


class Recording:
    """Files of one start of compute; without a folder nothing is written, nor digested."""

    def __init__(
        self, steps: OutputFile | None, routes: OutputFile | None, images: tuple[Path, Path] | None = None
    ) -> None:
        self._steps, self._routes, self._images = steps, routes, images
        self._encoder = msgspec.msgpack.Encoder()
        self._digest = b""

    @classmethod
    def open(
        cls, folder: str, epoch: int, attachments: Path | None = None, kernels: KernelTable | None = None
    ) -> Recording:
        """Start the files of epoch `epoch` in `folder` (made if needed); an empty name records nothing.

        What rows bring along in `attachments` is copied, since it goes with its request. `kernels` is the table that
        the steps are computed by.
        """
        if not folder:
            return cls(None, None)
        Path(folder).mkdir(parents=True, exist_ok=True)
        if kernels is not None:
            write_table(Path(folder, KERNELS), kernels)
        names = {"steps": "recording of steps", "routes": "recording of routes"}
        files = [OutputFile(Path(folder, f"{name}.{epoch}.msgpack"), what, 0) for name, what in names.items()]
        return cls(*files, images=attachments and (attachments, Path(folder, FOLDER)))

    def watch(self, choose: Chooser) -> Chooser:
        """The same chooser, with the logits it sees digested."""
        if self._steps is None:
            return choose

        def watched(step: RunStep, unit: Unit, logits: torch.Tensor) -> list[int | RowFailed]:
            self._digest = digest_rows(logits)
            return choose(step, unit, logits)

        return watched

    def order(self, message: Order) -> None:
        """An order that changes units or prefixes without running them."""
        if self._steps is not None:
            self._steps.write(self._encoder.encode(message))

    def step(self, order: RunStep, result: Stepped, used: StepRouting | None) -> None:
        """A step that ran, what came of it, and its routing."""
        if self._steps is None or self._routes is None:
            return
        try:
            self._keep_images(order)
        except OSError as error:
            self._steps.end(error)
        digested = msgspec.structs.replace(result, digest=self._digest)
        self._digest = b""  # a step that chooses no token has none
        self._steps.write(self._encoder.encode(order) + self._encoder.encode(digested))
        if used is not None:
            self._routes.write(self._encoder.encode(used))

    def _keep_images(self, order: RunStep) -> None:
        names = {row.attachment for row in order.admit if row.attachment}
        if self._images is None or not names:
            return
        source, target = self._images
        target.mkdir(exist_ok=True)
        for name in names:
            if is_attachment_name(name) and (source / name).is_file():
                shutil.copyfile(source / name, target / name)


def recorded_kernels(folder: Path) -> KernelTable:
    """Return the kernel table of a recording; one by the rule for a recording without it. Raises UsageError."""
    file = folder / KERNELS
    return read_table(file) if file.is_file() else KernelTable()


def read_steps(folder: str) -> Iterator[list[Recorded]]:
    """Yield the recorded steps of every start of compute, one list a start; a torn last message is left out.

    Raises UsageError for a file that holds something else.
    """
    for file in sorted(Path(folder).glob("steps.*.msgpack"), key=lambda path: int(path.suffixes[0][1:])):
        yield list(read_packed(file, Recorded, "recording of steps", "Record the run again (record=FOLDER)"))
