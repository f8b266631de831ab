"""Errors of the engine as errors of the API."""

from __future__ import annotations

import pytest
from expertflow.errors import (
    BudgetError,
    BusyError,
    CheckpointError,
    EngineError,
    ExpertFlowError,
    RequestError,
    UsageError,
)
from expertflow.runtime.openai.errors import to_api_error


@pytest.mark.parametrize(
    "error,status,kind,param",
    [
        (RequestError("must be above 0", "max_new_tokens", "Ask for more"), 400, "invalid_request_error", "max_tokens"),
        (RequestError("is empty", "messages[0].content"), 400, "invalid_request_error", "messages[0].content"),
        (UsageError("has no tokenizer", "/models/x y"), 400, "invalid_request_error", None),
        (BudgetError("needs 5 GB", "kv_memory"), 400, "invalid_request_error", "kv_memory"),
        (BusyError("is full", "queue"), 429, "rate_limit_error", None),
        (EngineError("has ended", "engine"), 503, "server_error", None),
        (CheckpointError("is broken", "f"), 500, "server_error", None),
        (ExpertFlowError("odd"), 500, "server_error", None),
    ],
)
def test_each_error_has_its_status(error: ExpertFlowError, status: int, kind: str, param: str | None) -> None:
    made = to_api_error(error)
    assert (made.status, made.kind, made.param) == (status, kind, param)


def test_the_text_names_the_field_of_the_body() -> None:
    made = to_api_error(RequestError("must be above 0", "max_new_tokens", "Ask for more"), {"max_new_tokens": "max"})
    assert made.message == "max must be above 0. Ask for more" and made.param == "max"
