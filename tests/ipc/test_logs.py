"""Lines of a log: one an event, text and JSON, of several processes in one place, no request in a traceback."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from expertflow.errors import CheckpointError, RequestError, UsageError
from expertflow.ipc.stage import logs
from expertflow.ipc.stage.logs import MAX_LINE_BYTES, LogSpec, error_text, remove_logging, set_up_logging

MARKER = "zebra-marker"
LOG = logging.getLogger("expertflow.somewhere")
TEXT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info    loader\.2\[\d+\] ready: slots 4")


@contextmanager
def logging_to(file: Path, **options: object) -> Iterator[None]:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        set_up_logging(LogSpec(fd=descriptor, **options), "loader", 2)  # pyright: ignore[reportArgumentType]
        yield
    finally:
        remove_logging()
        os.close(descriptor)


def raising(error: Exception) -> Exception:
    try:
        try:
            raise KeyError(MARKER)
        except KeyError as cause:
            raise error from cause
    except Exception as caught:  # noqa: BLE001 - its traceback is wanted
        return caught


def test_an_event_is_a_line_of_text_or_json(tmp_path: Path) -> None:
    with logging_to(tmp_path / "text"):
        LOG.info("ready: slots %d", 4)
        LOG.debug("unseen")
        LOG.warning("two\nlines")
    lines = (tmp_path / "text").read_text().splitlines()
    assert TEXT.fullmatch(lines[0]) and lines[1].endswith("two\\nlines") and len(lines) == 2
    with logging_to(tmp_path / "json", format="json", level="debug"):
        LOG.debug("seen")
        LOG.error("failed", exc_info=raising(CheckpointError("is gone", "file")))
    seen, failed = map(json.loads, (tmp_path / "json").read_text().splitlines())
    facts = {"level": "debug", "stage": "loader", "epoch": 2, "pid": os.getpid(), "event": "seen"}
    assert seen.items() >= facts.items()
    assert "is gone" in failed["error"] and "test_logs.py" in failed["error"] and "error" not in seen


@pytest.mark.parametrize(
    "error", [ValueError(MARKER), RequestError(MARKER, MARKER), UsageError(MARKER), KeyError(MARKER)]
)
def test_a_traceback_quotes_no_request_unless_asked(error: Exception) -> None:
    caught = raising(error)
    hidden, told = error_text(caught, False), error_text(caught, True)
    assert MARKER not in hidden and type(error).__name__ in hidden and "raising" in hidden and "KeyError" in hidden
    assert told.count(MARKER) >= 2


def test_other_libraries_speak_from_warnings_on(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log"):
        logging.getLogger("other").info("chatter")
        logging.getLogger("other").warning("careful")
    assert [line.rpartition(" ")[2] for line in (tmp_path / "log").read_text().splitlines()] == ["careful"]


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    file, code = tmp_path / "log", (
        "import logging, sys; from expertflow.ipc.stage.logs import *\n"
        "set_up_logging(LogSpec(fd=int(sys.argv[1]), format='json'), 'stage', 1)\n"
        "for n in range(300): logging.getLogger('expertflow').info('x' * 900)"
    )  # fmt: skip
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    command = [sys.executable, "-c", code, str(descriptor)]
    writers = [subprocess.Popen(command, pass_fds=[descriptor]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    os.close(descriptor)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 900 and {line["event"] for line in lines} == {"x" * 900}
    assert len({line["pid"] for line in lines}) == 3


def descriptor_handler() -> logs.DescriptorHandler:
    return next(each for each in logging.getLogger().handlers if isinstance(each, logs.DescriptorHandler))


@pytest.mark.parametrize("format", ["text", "json"])
def test_odd_texts_neither_stop_the_work_nor_steer_a_terminal(format: str, tmp_path: Path) -> None:
    """The first is no UTF-8, so it goes past pytest's own capture: pytest-xdist cannot send it to its main process."""
    with logging_to(tmp_path / "log", format=format):
        facts = {"name": LOG.name, "levelno": logging.INFO, "msg": "cannot read %s", "args": ("caf\udce9",)}
        descriptor_handler().handle(logging.makeLogRecord(facts))
        LOG.info("\x1b[2J\x00\x9b\ttab")
    content = (tmp_path / "log").read_text()
    assert "cannot read caf?" in content and len(content.splitlines()) == 2
    assert not any(character in content for character in "\x1b\x00")
    assert format == "json" or "\\x1b[2J\\x00\\x9b\ttab" in content


def test_a_log_that_cannot_be_written_stops_nothing_and_lines_are_bounded(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", format="json"):
        LOG.info("begin%send", "ÿ" * 10**6)
    line = (tmp_path / "log").read_text()
    assert len(line.encode()) < MAX_LINE_BYTES and re.fullmatch("beginÿ+ … ÿ+end", json.loads(line)["event"])
    set_up_logging(LogSpec(fd=os.open("/dev/full", os.O_WRONLY)), "loader")
    try:
        LOG.info("lost")
        handler = descriptor_handler()
    finally:
        remove_logging()
    os.close(handler.fd)
