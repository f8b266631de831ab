"""Time a start, from `Supervisor(config)` to ready, beside reading the skeleton's bytes once (target: 8 s more).

python -m expertflow.benchmarks.start_up --out docs/results/start-up.json

Before each start the checkpoint's files are dropped from the page cache. "survey" ends when the checkpoint is
understood; "memory" when the slots are allocated; the stages follow. The skeleton is read in order, past the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from expertflow import Config, Supervisor
from expertflow.ipc.messages import Progress
from expertflow.workers.checkpoint.headers import StoredTensor, checkpoint_files, read_headers

from .limits import drop_from_page_cache
from .models import folder_of
from .report import show_table, write_json

CHUNK_BYTES = 4 << 20


@dataclass
class Start:
    """Hold seconds from the beginning."""

    skeleton_read: float
    """Not a part of the start: what reading these bytes takes by itself."""
    survey: float = 0.0
    memory: float = 0.0
    ready: float = 0.0
    above_read: float = 0.0


def measure(folder: Path) -> Start:
    drop_from_page_cache(checkpoint_files(folder))
    start = Start(round(read_skeleton(folder), 3))
    drop_from_page_cache(checkpoint_files(folder))
    began = time.monotonic()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "checkpoint" and progress.done == progress.total:
            start.survey = round(time.monotonic() - began, 2)
        elif progress.stage == "supervisor":
            start.memory = round(time.monotonic() - began, 2)

    with Supervisor(Config.load("cpu-disk", model=str(folder), expert_memory="25%"), on_progress):
        start.ready = round(time.monotonic() - began, 2)
    start.above_read = round(start.ready - start.skeleton_read, 2)
    return start


def read_skeleton(folder: Path) -> float:
    """Return the seconds for all tensors that are no routed expert's, in the order in which they lie."""
    files = checkpoint_files(folder)
    stored = read_headers(files)
    tensors = [tensor for tensor in stored.values() if ".experts." not in tensor.name]
    began = time.monotonic()
    for number, file in enumerate(files):
        with file.open("rb", buffering=0) as opened:
            for tensor in sorted((each for each in tensors if each.file == number), key=_place):
                for at in range(0, tensor.count_bytes, CHUNK_BYTES):
                    os.pread(opened.fileno(), min(CHUNK_BYTES, tensor.count_bytes - at), tensor.offset_bytes + at)
    return time.monotonic() - began


def _place(tensor: StoredTensor) -> int:
    return tensor.offset_bytes


def show(name: str, starts: list[Start]) -> None:
    columns = {column: [asdict(start)[column] for start in starts] for column in asdict(starts[0])}
    row = {name: f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for name, each in columns.items()}
    title = f"start-up, model {name}, experts from disk: seconds (median, least–most of {len(starts)})"
    show_table(title, [row], left=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("r", "widened"), default="r")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    folder = folder_of(arguments.model)
    starts = [measure(folder) for _ in range(arguments.repeats)]
    show(arguments.model, starts)
    write_json(arguments.out, [asdict(start) for start in starts])


if __name__ == "__main__":
    main()
