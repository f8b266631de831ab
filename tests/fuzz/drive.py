"""Fuzz targets one after the other, guided by coverage (atheris); `make fuzz` starts this.

    python -m expertflow.tests.fuzz.drive NAME NAME --seconds 60 --out FOLDER

What is imported is instrumented once; each target then runs in a copy of this process. In its folder, inputs that show
a fault are written, one for each kind and place, and fuzzing goes on; `result.json` says how many ran, `exit` how it
ended. A process that takes too much memory is ended by the library, which leaves that input behind; one that computes
too long for one input is ended by the kernel. Only processor time counts, so a machine that stands still is no fault.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import mmap
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertflow.tests.fuzz.target import Read, Target

MEMORY_BYTES = 4 << 30
"""Address space of a process; torch's libraries take one of these GiB."""
RSS_LIMIT_MB, INPUT_LIMIT_S, MAX_INPUT_BYTES = 2048, 20, 4096
START_S = 60.0
"""Seconds beyond its time after which the process of a target is killed: a busy machine, and one slow input."""
SLICE_S = 1.0
OURS = ("expertflow.tests", "expertflow.benchmarks")
"""Packages whose coverage guides nothing."""
REPORT, EXIT, CURRENT = "result.json", "exit", "current"


class Session:
    """The runs of one target."""

    def __init__(self, target: Target, read: Read, out: Path, current: CurrentInput | None = None) -> None:
        from expertflow.tests.fuzz.target import try_input

        self._target, self._read, self._out, self._try, self._current = target, read, out, try_input, current
        self._begun_s = time.monotonic()
        self._runs = 0
        self._faults: dict[str, str] = {}
        self._written_s = 0.0

    def run(self, data: bytes) -> None:
        """Try one input, and note its fault. Writes the report about each second."""
        self._runs += 1
        if self._current is not None:
            self._current.set(data)
        if fault := self._try(self._read, self._target.refusals, data):
            self._note(f"{fault.kind} {fault.place}", data, fault.details)
        if not self._runs % 64 and (now_s := time.monotonic()) > self._written_s + 1:
            self.write(now_s)

    def _note(self, key: str, data: bytes, details: str) -> None:
        if key in self._faults:
            return
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        (self._out / f"fault-{name}").write_bytes(data)
        (self._out / f"fault-{name}.txt").write_text(f"{key}\n{data!r}\n{details}")
        self._faults[key] = f"fault-{name}"
        self.write(time.monotonic())

    def write(self, now_s: float) -> None:
        """Write the report: the library ends the process without a word."""
        self._written_s = now_s
        report = {"runs": self._runs, "seconds": round(now_s - self._begun_s, 1), "faults": self._faults}
        (self._out / REPORT).write_text(json.dumps(report))


class CurrentInput:
    """The input that is being read, in a file that outlives the process, and the limit on its processor time."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(4 + MAX_INPUT_BYTES))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0)

    def set(self, data: bytes) -> None:
        """Note an input, and let the kernel end this process (SIGPROF) if it computes too long for it."""
        count = min(len(data), MAX_INPUT_BYTES)
        self._memory[: 4 + count] = count.to_bytes(4, "little") + data[:count]
        signal.setitimer(signal.ITIMER_PROF, INPUT_LIMIT_S)

    @staticmethod
    def read(file: Path) -> bytes:
        """Return the input that was noted last; empty without a file."""
        raw = file.read_bytes() if file.is_file() else bytes(4)
        return raw[4 : 4 + int.from_bytes(raw[:4], "little")]


def change(target: Target, data: bytes, most: int, seed: int) -> bytes:
    """Return a changed input of at most `most` bytes: half are the library's changes, half ours."""
    from expertflow.tests.fuzz.mutations import mutate

    rng = random.Random(seed)
    if target.form == "bytes" or rng.random() < 0.5:
        return library().Mutate(data, len(data))
    return mutate(data, target.form, target.kept, rng)[:most]


def library() -> Any:
    """Return the module `atheris`, which only the extra `fuzz` brings."""
    return importlib.import_module("atheris")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with library().instrument_imports(include=["expertflow"], exclude=list(OURS)):
        from expertflow.tests.fuzz.all_targets import TARGETS
    for name in arguments.names:
        _fuzz_apart(TARGETS[name], arguments)


def _fuzz_apart(target: Target, arguments: argparse.Namespace) -> None:
    """Fuzz a target in a process of its own, a copy of this one, and write how that ended."""
    out = folder_of(arguments.out, target.name)
    out.mkdir(parents=True, exist_ok=True)
    for name in (REPORT, EXIT):
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="ef-fuzz-", dir=_fast_folder()) as work:
        child = os.fork()
        if not child:
            _fuzz(target, arguments, out, Path(work))
            os._exit(0)
        code = _await_end(child, arguments.seconds + START_S)
        if code == -signal.SIGPROF:
            data = CurrentInput.read(Path(work) / CURRENT)
            (out / f"timeout-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
    (out / EXIT).write_text(f"ended with {code}" if code else "" if code == 0 else "was killed after its time")


def _await_end(child: int, limit_s: float) -> int | None:
    """Return the exit code of a child, negative for a signal; None: it was killed after its time.

    It waits in slices: where this process and its child are both stopped for a while, that is one slice.
    """
    descriptor = os.pidfd_open(child)
    slices = [min(SLICE_S, limit_s)] * max(1, round(limit_s / SLICE_S))
    ended = any(select.select([descriptor], [], [], slice_s)[0] for slice_s in slices)
    if not ended:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if ended else None


def _fuzz(target: Target, arguments: argparse.Namespace, out: Path, work: Path) -> None:
    atheris = library()
    output = os.open(out / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    corpus, working = work / "corpus", work / "files"
    corpus.mkdir()
    working.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    logging.disable()  # refusals may be logged, each of them
    session = Session(target, target.prepare(working), out, CurrentInput(work / CURRENT))
    words = [
        sys.argv[0], str(corpus), f"-max_total_time={max(1, round(arguments.seconds))}", f"-seed={arguments.seed + 1}",
        f"-rss_limit_mb={RSS_LIMIT_MB}", "-timeout=1000000", f"-max_len={MAX_INPUT_BYTES}", "-verbosity=0",
        "-print_final_stats=0", f"-artifact_prefix={out}/",
    ]  # fmt: skip
    atheris.Setup(words, session.run, custom_mutator=lambda data, most, seed: change(target, data, most, seed))
    atheris.Fuzz()


def folder_of(out: Path, name: str) -> Path:
    """Return the folder for what a target shows."""
    return out / re.sub(r"\W+", "-", name).strip("-")


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
