"""Starts and ends the process that renders chat templates (chat_worker.py), and gives it jobs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from typing import IO

import msgspec

from ...errors import UsageError
from .chat_render_job import RenderJob, RenderReply, read_frame, write_frame

MAX_CPU_S = 5.0
"""Processor time of one rendering; a long conversation takes some milliseconds."""
MAX_WAIT_S = 60.0
"""Time of one rendering, waits for a processor included, and of the start of the process."""
_MODULE = "expertflow.runtime.text.chat_worker"
_EXIT_S = 5.0
_REMEDY = "Check the messages, or leave out the chat template and give the text as it is"


class TemplateProcess:
    """Renders chat templates in a process that is started at the first job. Threads take turns."""

    def __init__(self, cpu_s: float = MAX_CPU_S) -> None:
        self._cpu_s = cpu_s
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def render(self, job: RenderJob, where: str) -> str:
        """Return the rendered conversation.

        Raises UsageError if the job has a number of more than 64 bits, or the template fails, needs more time or memory
        than it may, or ends its process.
        """
        try:
            encoded = msgspec.msgpack.encode(job)
        except OverflowError as error:
            remedy = "Send numbers between -2^63 and 2^64 - 1, or write them as texts"
            raise UsageError("a number in this conversation has more than 64 bits", where, remedy) from error
        with self._turn:
            reply = self._ask(encoded, where)
        if reply.error is not None:
            raise UsageError(f"its chat template cannot render this conversation: {reply.error}", where, _REMEDY)
        return reply.text

    def close(self) -> None:
        """End the process. Idempotent; a later job starts another."""
        with self._turn:
            self._end()

    def _ask(self, job: bytes, where: str) -> RenderReply:
        try:
            process = self._started()
            write_frame(_pipe(process.stdin), job)
            return msgspec.msgpack.decode(_read_within(_pipe(process.stdout)), type=RenderReply)
        except (OSError, EOFError, TimeoutError) as error:
            raise UsageError(_describe(self._end(_EXIT_S), self._cpu_s), where, _REMEDY) from error
        except BaseException:
            self._end()  # its answer would be taken for that of the next job
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, str(os.getpid()), str(self._cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the command
        )
        _read_within(_pipe(self._process.stdout))
        return self._process

    def _end(self, wait_s: float = 0.0) -> int:
        """Return the exit code of the process, which is killed after `wait_s`; 0 if there is none."""
        if (process := self._process) is None:
            return 0
        self._process = None
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
        _close(process.stdin)
        _close(process.stdout)
        return process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise EOFError("the process has no pipe")
    return pipe


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:  # what could not be written is lost with the process
        pass


def _read_within(stream: IO[bytes]) -> bytes:
    """Return the next frame. Raises TimeoutError after `MAX_WAIT_S`, EOFError if the process has ended."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    if not poll.poll(MAX_WAIT_S * 1000):
        raise TimeoutError
    frame = read_frame(stream)
    if frame is None:
        raise EOFError
    return frame


def _describe(code: int, cpu_s: float) -> str:
    if code == -signal.SIGPROF:
        return f"its chat template needs more than {cpu_s:g} s of processor time for this conversation"
    return "its chat template ended the process that renders it: it needs too much memory or time"
