"""A timeline is read as it was written, as far as it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Span
from expertflow.runtime.engine.timeline import Timeline, read_timeline

SPANS = [
    ("compute", Span("decode", 1_000_000_123_456_789, 1_000_000_123_999_999, 0, {"step": (1 << 32) + 7, "unit": 1})),
    ("loader", Span("load", 1_000_000_123_500_001, 1_000_000_123_500_001, 3, {"cause": "miss", "experts": "1,2"})),
    ("compute", Span("stall", 5, 6, 1, {})),
]


def write(file: Path) -> bytes:
    timeline = Timeline(str(file))
    for stage, span in SPANS:
        timeline.write(stage, [span])
    timeline.close()
    return file.read_bytes()


def test_spans_come_back_with_their_stages(tmp_path: Path) -> None:
    """To a few nanoseconds: the format counts in microseconds, as fractions."""
    write(tmp_path / "t.json")
    for (stage, span), (read_stage, read) in zip(SPANS, read_timeline(tmp_path / "t.json"), strict=True):
        assert (stage, span.name, span.lane, span.detail) == (read_stage, read.name, read.lane, read.detail)
        assert abs(span.start_ns - read.start_ns) < 500 and abs(span.end_ns - read.end_ns) < 500


def test_of_a_killed_engine_all_but_the_last_event_is_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.json")
    file = tmp_path / "torn.json"
    file.write_bytes(whole[: whole.index(b'"stall"')])
    assert [span.name for _, span in read_timeline(file)] == ["decode", "load"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is no timeline"),
        (b"{}\n{}\n", "is no timeline"),
        (b"[\n{}\n{}\n", "is no timeline"),
        (b'[\n{"ph":"X","name":"a","pid":9}\n]', "is no"),
    ],
)
def test_what_is_no_timeline_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        list(read_timeline(tmp_path / "t.json"))
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_timeline(tmp_path / "none.json"))
