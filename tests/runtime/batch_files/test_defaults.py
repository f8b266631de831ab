"""Fields that a batch gives to bodies which do not name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.batch_files.calls import Failed, LineCall, read_call, read_defaults
from expertflow.runtime.batch_files.checking import check_lines
from expertflow.runtime.batch_files.request_line import RequestLine
from expertflow.tests.runtime.batch_files.jobs import indexed, request_text
from expertflow.tests.runtime.openai.models import make_model, save_model


def line_of(body: dict[str, object]) -> RequestLine:
    return RequestLine("a", "/v1/completions", json.dumps({"prompt": "x", **body}).encode())


def test_a_body_overrides_them(tmp_path: Path) -> None:
    """Also by null, which counts as left out; seeds are drawn from the id unless they are in either."""
    model = make_model(save_model(tmp_path))
    defaults = read_defaults('{"max_tokens": 7, "temperature": 0.5, "seed": 3}')
    bodies: list[tuple[dict[str, object], int]] = [({}, 7), ({"max_tokens": 2}, 2), ({"max_tokens": None}, 16)]
    for body, limit in bodies:
        read = read_call(line_of(body), model, "job", 0, defaults)
        assert isinstance(read, LineCall)
        (request,) = read.requests
        assert (request.max_new_tokens, request.temperature, request.seed) == (limit, 0.5, 3)


def test_what_they_make_wrong_is_said_of_the_line(tmp_path: Path) -> None:
    model, defaults = make_model(save_model(tmp_path)), read_defaults('{"temperature": -1}')
    assert isinstance(read_call(line_of({}), model, "job", 0, defaults), Failed)
    bodies = [request_text(name, body={"prompt": "x", **more}) for name, more in (("a", {}), ("b", {"temperature": 1}))]
    assert [number for number, _ in check_lines(indexed(bodies), model, defaults)] == [1]


def test_they_come_as_a_text_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "defaults.json"
    file.write_text('{"top_k": 5}')
    assert read_defaults(str(file)) == read_defaults(' {"top_k": 5}') == {"top_k": 5} and read_defaults("") == {}


@pytest.mark.parametrize("text", ["{", "nowhere.json", '{"prompt": "a"}', '{"stream": true}'])
def test_what_is_no_object_of_defaults_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_defaults(text)
