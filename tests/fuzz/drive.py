"""Fuzz one target in this process, guided by coverage (atheris): `make fuzz` starts one for each target.

    python -m expertflow.tests.fuzz.drive NAME --seconds 60 --out FOLDER --work EMPTY_FOLDER

Inputs that show a fault are written to FOLDER, one for each kind and place, and fuzzing goes on; `result.json` there
says how many ran. A process that takes too much memory, or too long for one input, is ended by the library, which
leaves that input behind. The library ends the process itself, so whoever starts it removes EMPTY_FOLDER.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertflow.tests.fuzz.target import Read, Target

MEMORY_BYTES = 4 << 30
"""Address space of a process; torch's libraries take one of these GiB."""
RSS_LIMIT_MB, INPUT_LIMIT_S, MAX_INPUT_BYTES = 2048, 20, 4096
REPORT = "result.json"


class Session:
    """The runs of one target."""

    def __init__(self, target: Target, read: Read, out: Path) -> None:
        self._target, self._read, self._out = target, read, out
        self._begun_s = time.monotonic()
        self._runs = 0
        self._faults: dict[str, str] = {}
        self._written_s = 0.0

    def run(self, data: bytes) -> None:
        """Try one input, and note its fault. Writes the report about each second."""
        from expertflow.tests.fuzz.target import try_input

        self._runs += 1
        if fault := try_input(self._read, self._target.refusals, data):
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
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _fuzz(arguments)


def _fuzz(arguments: argparse.Namespace) -> None:
    atheris = library()
    with atheris.instrument_imports(include=["expertflow"]):
        from expertflow.tests.fuzz.all_targets import TARGETS
    target = TARGETS[arguments.name]
    corpus, working = arguments.work / "corpus", arguments.work / "files"
    corpus.mkdir()
    working.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    session = Session(target, target.prepare(working), arguments.out)
    words = [
        sys.argv[0], str(corpus), f"-max_total_time={max(1, round(arguments.seconds))}", f"-seed={arguments.seed + 1}",
        f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={INPUT_LIMIT_S}", f"-max_len={MAX_INPUT_BYTES}", "-verbosity=0",
        "-print_final_stats=0", f"-artifact_prefix={arguments.out}/",
    ]  # fmt: skip
    atheris.Setup(words, session.run, custom_mutator=lambda data, most, seed: change(target, data, most, seed))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
