"""Index of a file of requests: where each line is, which are faulty, which have ended. About 40 bytes a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .line_reader import Line
from .request_line import DUPLICATE_ID, LineFault, RequestLine, digest_of

RUNS, FAULTY, REPEATS = 0, 1, 2
"""State of a line: a request, a line with a fault, a request with the custom_id of an earlier line."""
NO_LINE = -1


class JobIndex:
    """Lines of a file by row: rows count the lines that are not blank, in the order of the file, from 0.

    A custom_id is known by 64 bits of its digest: of a million ids, two are taken for equal with a probability of
    3e-8, and the later line is reported.
    """

    def __init__(self, numbers: np.ndarray, offsets: np.ndarray, ids: np.ndarray, states: np.ndarray) -> None:
        """Take int64 [rows] line numbers and offsets, uint64 [rows] digests of ids, uint8 [rows] states."""
        self.numbers, self.offsets, self.states = numbers, offsets, states
        self.ended = np.zeros(len(numbers), dtype=bool)
        """bool [rows]: the line has its result or its error in a file."""
        self._ids = ids
        named = np.flatnonzero(states != FAULTY)
        order = named[np.argsort(ids[named], kind="stable")]
        repeated = np.append(False, ids[order][1:] == ids[order][:-1])[: len(order)]
        states[order[repeated]] = REPEATS
        self._by_id = order[~repeated]
        self._sorted_ids = ids[self._by_id]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def open_rows(self) -> np.ndarray:
        """Return int64: rows of requests that have not ended, in the order of the file."""
        return np.flatnonzero((self.states == RUNS) & ~self.ended)

    @property
    def open_faults(self) -> np.ndarray:
        """Return int64: rows of faulty and repeated lines that have not been reported, in the order of the file."""
        return np.flatnonzero((self.states != RUNS) & ~self.ended)

    @property
    def requests(self) -> int:
        """Return the number of lines that can run."""
        return int((self.states == RUNS).sum())

    def row_of(self, custom_id: str) -> int:
        """Return the row of the request with this id; `NO_LINE` if there is none."""
        digest = np.uint64(digest_of(custom_id.encode()))
        place = int(np.searchsorted(self._sorted_ids, digest))
        found = place < len(self._sorted_ids) and self._sorted_ids[place] == digest
        return int(self._by_id[place]) if found else NO_LINE

    def row_of_line(self, number: int) -> int:
        """Return the row of a line by its number; `NO_LINE` if the file has no such line, or a blank one."""
        place = int(np.searchsorted(self.numbers, number))
        return place if place < len(self) and self.numbers[place] == number else NO_LINE

    def is_at(self, row: int, request: RequestLine) -> bool:
        """Return whether a request that was read again is the one that was indexed."""
        return digest_of(request.custom_id.encode()) == int(self._ids[row])

    def repeat_fault(self, row: int, custom_id: str) -> LineFault:
        """Return the fault of a line whose id an earlier line has."""
        first = self.numbers[self.row_of(custom_id)]
        return LineFault(DUPLICATE_ID, f"custom_id is that of line {first:,}; each line needs its own", custom_id)

    def lines(self, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Yield row, number and offset of lines."""
        for row in rows.tolist():
            yield row, int(self.numbers[row]), int(self.offsets[row])


@dataclass
class IndexBuilder:
    """Collects the lines of a file for a `JobIndex`."""

    _numbers: array[int] = field(default_factory=lambda: array("q"))
    _offsets: array[int] = field(default_factory=lambda: array("q"))
    _ids: array[int] = field(default_factory=lambda: array("Q"))
    _states: array[int] = field(default_factory=lambda: array("B"))

    def add(self, line: Line, parsed: RequestLine | LineFault) -> None:
        """Add a line that is not blank, as it was parsed."""
        runs = isinstance(parsed, RequestLine)
        self._numbers.append(line.number)
        self._offsets.append(line.offset)
        self._ids.append(digest_of(parsed.custom_id.encode()) if runs and parsed.custom_id else 0)
        self._states.append(RUNS if runs else FAULTY)

    def finish(self) -> JobIndex:
        """Return the index; repeated ids are found here."""
        numbers, offsets = np.array(self._numbers, dtype=np.int64), np.array(self._offsets, dtype=np.int64)
        ids, states = np.array(self._ids, dtype=np.uint64), np.array(self._states, dtype=np.uint8)
        return JobIndex(numbers, offsets, ids, states)


def is_blank(content: bytes | None) -> bool:
    """Return whether a line holds nothing but white space; such lines are no requests and no faults."""
    return content is not None and not content.strip()
