"""A full disk ends a file, not the process that writes it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Span
from expertflow.ipc.shared.output_file import OutputFile
from expertflow.runtime.engine.timeline import Timeline

FULL = Path("/dev/full")


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_full_disk_ends_it_with_one_warning(buffering: int, caplog: pytest.LogCaptureFixture) -> None:
    file = OutputFile(FULL, "trace", buffering)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.write(b"x" * 10_000)
            file.flush()
        file.close()
    assert file.closed
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/full: No space left on device; the trace ends here"
    ]


def test_what_fits_is_whole(tmp_path: Path) -> None:
    file = OutputFile(tmp_path / "file", "trace")
    file.write(b"one")
    file.write(b"two")
    file.close()
    file.close()
    file.write(b"late")
    assert (tmp_path / "file").read_bytes() == b"onetwo"


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        OutputFile(tmp_path / "missing" / "file", "trace")


def test_a_timeline_on_a_full_disk_ends_alone() -> None:
    """It is written by the supervisor, which must live."""
    timeline = Timeline(str(FULL))
    for number in range(500):
        timeline.write("compute", [Span("step", number, number + 1, 0, {})])
    timeline.close()
