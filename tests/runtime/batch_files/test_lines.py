"""Lines of a batch file are found again by offset, and what is no request is named with its reason."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from expertflow.runtime.batch_files import request_line
from expertflow.runtime.batch_files.line_reader import Line, read_line_at, read_lines
from expertflow.runtime.batch_files.request_line import LineFault, RequestLine, parse_line, seed_of
from expertflow.tests.runtime.batch_files.jobs import indexed, request_text
from expertflow.workers.scheduler.validation import SEED_LIMIT
from hypothesis import given, settings
from hypothesis import strategies as st

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8)


@settings(deadline=None)
@given(lines=LINES, last=st.booleans(), mark=st.booleans())
def test_every_line_is_read_once_and_found_again(lines: list[bytes], last: bool, mark: bool) -> None:
    """With and without a byte order mark, carriage returns, and an end behind the last line."""
    content = b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" * last
    file, seen = io.BytesIO(content), bytearray()
    read = list(read_lines(file, seen.extend))
    assert bytes(seen) == content
    expected = content.split(b"\n")[: None if content and not content.endswith(b"\n") else -1]
    if expected:
        expected[0] = expected[0].removeprefix(b"\xef\xbb\xbf")
    assert [line.number for line in read] == list(range(1, len(read) + 1))
    assert len(read) == len(expected)
    for line, whole in zip(read, expected, strict=True):
        assert line.content == whole.removesuffix(b"\r") == read_line_at(file, line.offset)


def test_a_line_that_is_too_long_is_skipped_without_being_held() -> None:
    file = io.BytesIO(b"a\n" + b"x" * 50_000_000 + b"\nb\n" + b"y" * 21)
    tracemalloc.start()
    read = list(read_lines(file, max_bytes=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == [Line(1, 0, b"a"), Line(2, 2, None), Line(3, 50_000_003, b"b"), Line(4, 50_000_005, None)]
    assert peak < 10_000_000
    assert read_line_at(file, 2, max_bytes=20) is None and read_line_at(file, 50_000_005, max_bytes=20) is None
    assert read_line_at(file, 50_000_005, max_bytes=21) == b"y" * 21


def test_a_good_line_is_a_request() -> None:
    line = request_text("é😀", prompt="x", url="/v1/chat/completions")
    parsed = parse_line(line.encode())
    assert isinstance(parsed, RequestLine) and parsed[:2] == ("é😀", "/v1/chat/completions")
    assert json.loads(parsed.body) == {"model": "m", "prompt": "x"}


@pytest.mark.parametrize(
    ("content", "code", "custom_id"),
    [
        (None, request_line.BAD_LINE, None),
        (b"{", request_line.NOT_JSON, None),
        (b'{"custom_id":"\xff"}', request_line.NOT_JSON, None),
        (b'{"custom_id":"\\ud800"}', request_line.NOT_JSON, None),
        (b'{"custom_id":"a","x":' + b"[" * 100_000, request_line.NOT_JSON, None),
        (b"[]", request_line.BAD_LINE, None),
        (b'{"custom_id":"a"}', request_line.BAD_LINE, "a"),
        (b'{"custom_id":7,"method":"POST","url":"u","body":{}}', request_line.BAD_LINE, None),
        (request_text("").encode(), request_line.BAD_ID, None),
        (request_text("i" * 513).encode(), request_line.BAD_ID, "i" * 512),
        (request_text("a", method="GET").encode(), request_line.BAD_METHOD, "a"),
        (request_text("a", url="/v1/embeddings").encode(), request_line.BAD_URL, "a"),
        (request_text("a", body=[]).encode(), request_line.BAD_LINE, "a"),
        (request_text("a", body=None).encode(), request_line.BAD_LINE, "a"),
    ],
    ids=str,
)
def test_a_bad_line_has_a_reason(content: bytes | None, code: str, custom_id: str | None) -> None:
    fault = parse_line(content)
    assert isinstance(fault, LineFault) and (fault.code, fault.custom_id) == (code, custom_id)


LEAVES = st.none() | st.integers() | st.text()


@settings(deadline=None)
@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_a_request_or_a_fault(value: Any) -> None:
    for changed in ({"body": value}, {"custom_id": value}, {"url": value}):
        parsed = parse_line((json.dumps({**json.loads(request_text("a")), **changed})).encode())
        assert isinstance(parsed, LineFault | RequestLine)


def test_seeds_are_of_the_id_alone() -> None:
    """A seed that is written here cannot change unnoticed: resumed jobs would draw other tokens."""
    assert seed_of("request-1") == seed_of("request-1") != seed_of("request-2")
    assert 0 <= seed_of("request-1") < SEED_LIMIT
    assert seed_of("request-1") == SEED_OF_REQUEST_1


SEED_OF_REQUEST_1 = 7239539881221587450


def test_repeated_ids_are_faults_from_the_second_on() -> None:
    a, b = request_text("a"), request_text("b")
    lines = [a, "", request_text("b", url="/x"), b, a, "{", b]
    given_lines = indexed(lines)
    index = given_lines.index
    assert index.numbers.tolist() == [1, 3, 4, 5, 6, 7]
    assert [given_lines.request(row).custom_id for row in index.open_rows] == ["a", "b"]
    assert [(number, fault.code) for _, number, fault in given_lines.faults()] == [
        (3, request_line.BAD_URL),
        (5, request_line.DUPLICATE_ID),
        (6, request_line.NOT_JSON),
        (7, request_line.DUPLICATE_ID),
    ]
    assert "line 4" in list(given_lines.faults())[3][2].message


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=3), max_size=12))
def test_a_row_is_found_by_its_id(ids: list[str]) -> None:
    index = indexed(request_text(custom_id) for custom_id in ids).index
    assert index.requests == len(set(ids))
    for custom_id in ids:
        assert index.row_of(custom_id) == ids.index(custom_id)
    assert index.row_of("no such id") == -1
    assert index.row_of_line(len(ids) + 1) == index.row_of_line(0) == -1


def test_an_empty_file_has_no_lines() -> None:
    assert len(indexed([]).index) == 0 and len(indexed(["", "  "]).index) == 0
    assert not indexed([]).index.open_rows.size


def test_the_index_is_small() -> None:
    """Memory of 10,000 lines: arrays, no objects."""
    lines = [request_text(f"request-{number}", prompt="a" * 1000) for number in range(10_000)]
    tracemalloc.start()
    given_lines = indexed(lines)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held - len(given_lines.file.getvalue()) < 10_000 * 80  # pyright: ignore[reportAttributeAccessIssue]
