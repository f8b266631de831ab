"""Lines of results and of errors in OpenAI's batch format, and what a resumed job reads from them."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import BinaryIO, NamedTuple

import msgspec

from ...errors import UsageError
from .request_line import LineFault

OK = 200


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Fault(msgspec.Struct, frozen=True):
    code: str
    message: str


class _ResultLine(msgspec.Struct, frozen=True):
    id: str
    custom_id: str | None
    response: _Response | None
    error: _Fault | None


class _ErrorLine(_ResultLine, frozen=True):
    line: int
    """Number of the line in the file of requests, from 1."""


class _Ended(msgspec.Struct, frozen=True):
    custom_id: str | None
    line: int | None = None


class EndedLine(NamedTuple):
    """A line of an earlier run: the id of its request, and the number of the line if it is an error's."""

    custom_id: str | None
    line: int | None


def result_line(custom_id: str, body: bytes, job: str) -> bytes:
    """Return the line of a request that succeeded. `body` is the response in JSON, `job` names the job."""
    response = _Response(OK, name_of("req", job, custom_id), msgspec.Raw(body))
    return msgspec.json.encode(_ResultLine(name_of("batch_req", job, custom_id), custom_id, response, None)) + b"\n"


def failure_line(custom_id: str, number: int, status: int, body: bytes, job: str) -> bytes:
    """Return the line of a request that was refused or failed, with the number of its line."""
    response = _Response(status, name_of("req", job, custom_id), msgspec.Raw(body))
    line = _ErrorLine(name_of("batch_req", job, custom_id), custom_id, response, None, number)
    return msgspec.json.encode(line) + b"\n"


def fault_line(fault: LineFault, number: int, job: str) -> bytes:
    """Return the line of what is no request: it has an `error` and no `response`."""
    error = _Fault(fault.code, fault.message)
    line = _ErrorLine(name_of("batch_req", job, f"line {number}"), fault.custom_id, None, error, number)
    return msgspec.json.encode(line) + b"\n"


def name_of(kind: str, job: str, custom_id: str) -> str:
    """Return the id of a result: the same in every run of a job, so that a resumed run writes the same lines."""
    return f"{kind}_{blake2b(f'{job} {custom_id}'.encode(), digest_size=12).hexdigest()}"


def read_ended(file: BinaryIO, where: str) -> Iterator[EndedLine]:
    """Yield the lines of a file of results or errors, all of which are whole.

    Raises UsageError that names a line which is no result: the file is of something else, or was changed.
    """
    for number, line in enumerate(file, 1):
        try:
            ended = msgspec.json.decode(line, type=_Ended)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            remedy = "Name another file for the results, or remove the line to run its request again"
            raise UsageError(f"is no result of a batch ({error})", f"{where}, line {number:,}", remedy) from error
        yield EndedLine(ended.custom_id, ended.line)
