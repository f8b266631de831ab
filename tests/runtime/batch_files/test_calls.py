"""Results of lines: the same whatever else ran, and errors of another day that are no results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.errors import BusyError, EngineError, ExpertFlowError, RequestError
from expertflow.runtime.batch_files.calls import Failed, LineCall, answer_line, failure_of, read_call
from expertflow.runtime.batch_files.request_line import RequestLine
from expertflow.tests.runtime.openai.models import complete, make_model, save_model


@pytest.fixture
def read(tmp_path: Path) -> LineCall:
    line = RequestLine("a", "/v1/completions", b'{"prompt": "x"}')
    read = read_call(line, make_model(save_model(tmp_path)), "job", 5)
    assert isinstance(read, LineCall)
    return read


def test_tokens_that_happened_to_be_cached_are_not_in_a_result(read: LineCall) -> None:
    """A resumed run finds other prefixes in the cache, and must write the same line."""
    prompt, model = read.requests[0].prompt, read.call.model
    done = [complete(model, prompt, "y", cached_tokens=count) for count in (0, 2)]
    lines = [answer_line("a", read.call, [each], "job") for each in done]
    assert lines[0] == lines[1] and json.loads(lines[0])["response"]["body"]["created"] == 5


@pytest.mark.parametrize("error", [EngineError("has ended", "engine"), BusyError("is full", "queue")])
def test_an_error_of_the_engine_is_no_result(read: LineCall, error: ExpertFlowError) -> None:
    """The line would be among the errors for ever, and the next run would not try it."""
    with pytest.raises(type(error)):
        failure_of(error, read.call)
    assert isinstance(failure_of(RequestError("is wrong", "prompt"), read.call), Failed)
