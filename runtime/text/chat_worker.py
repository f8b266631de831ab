"""The process that renders chat templates: `python -m expertflow.runtime.text.chat_worker PARENT_PID CPU_SECONDS`.

A template is a stranger's code, so it runs where it can be ended. A job that takes more processor time than it may is
ended by the system with SIGPROF; one that takes more memory fails; no file can be written. Jobs come on stdin and
replies go to stdout; the process ends with its stdin or its parent.
"""

from __future__ import annotations

import resource
import signal
import sys

import msgspec

from ...ipc.stage.run_with_parent import end_with_process
from .chat_render import render
from .chat_render_job import RenderJob, RenderReply, read_frame, write_frame

MAX_BYTES = 1 << 30
"""Address space of this process; a template that multiplies texts would take all memory."""
_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)


def main() -> None:
    """Answer jobs until stdin ends."""
    parent_pid, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    end_with_process(parent_pid)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    decoder = msgspec.msgpack.Decoder(RenderJob)
    write_frame(sys.stdout.buffer, b"")
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        reply = _answer(decoder.decode(frame))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(sys.stdout.buffer, reply)


def _answer(job: RenderJob) -> bytes:
    import jinja2

    try:
        return msgspec.msgpack.encode(RenderReply(render(job)))
    except (jinja2.TemplateError, *_FAILURES) as error:
        return msgspec.msgpack.encode(RenderReply(error=f"{error}" or type(error).__name__))


if __name__ == "__main__":
    main()
