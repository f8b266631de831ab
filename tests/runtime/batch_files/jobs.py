"""A batch job without an engine: answers are a function of the request alone, and it can be ended after any line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from expertflow.runtime.batch_files.header import JobHeader
from expertflow.runtime.batch_files.result_lines import failure_line, fault_line, result_line
from expertflow.runtime.batch_files.store import IndexedInput, JobStore, index_input


def request_text(custom_id: str, prompt: str = "a", **changed: object) -> str:
    """Return a good line, with some fields changed."""
    body = {"model": "m", "prompt": prompt}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body, **changed})


def indexed(lines: Iterable[str]) -> IndexedInput:
    """Return the index of a file with these lines."""
    return index_input(io.BytesIO("".join(f"{line}\n" for line in lines).encode()), "in.jsonl")


def header_of(given: IndexedInput, **changed: object) -> JobHeader:
    facts: dict[str, object] = {
        "input_sha256": given.sha256, "input_bytes": given.size_bytes, "lines": len(given.index), "model": "m",
        "revision": "", "model_digest": "d", "options": {"batch_invariant": False}, "created": 1,
    }  # fmt: skip
    return JobHeader(**facts | changed)  # pyright: ignore[reportArgumentType]


def fails(custom_id: str) -> bool:
    """Return whether the request with this id fails: some do."""
    return sum(custom_id.encode()) % 5 == 0


def run_job(folder: Path, lines: list[str], order: Iterator[float] | None = None, most: int | None = None) -> int:
    """Run or resume a job in a folder. Return the number of lines written; end early after `most` of them.

    `order` permutes the requests that are open.
    """
    given = indexed(lines)
    with closing(JobStore(folder / "out", folder / "err", header_of(given), given.index)) as store:
        written = 0
        for row, line, failed in _ended(given, order):
            if written == most:
                break
            store.end(row, line, failed)
            written += 1
        return written


def _ended(given: IndexedInput, order: Iterator[float] | None) -> Iterator[tuple[int, bytes, bool]]:
    for row, number, fault in given.faults():
        yield row, fault_line(fault, number, "job"), True
    rows = given.index.open_rows.tolist()
    for row in sorted(rows, key=lambda row: (next(order) if order else 0, row)):
        custom_id = given.request(row).custom_id
        number, body = int(given.index.numbers[row]), json.dumps({"text": custom_id * 3}).encode()
        if fails(custom_id):
            yield row, failure_line(custom_id, number, 400, body, "job"), True
        else:
            yield row, result_line(custom_id, body, "job"), False
