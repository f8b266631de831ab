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
from expertflow.runtime.client.images import ImagePreprocessor, ImagePrompt
from expertflow.runtime.openai.bodies import CompletionBody
from expertflow.runtime.openai.chat_call import ChatCall
from expertflow.runtime.openai.errors import ApiError, to_api_error
from expertflow.runtime.openai.reading import read_body


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


def test_a_damaged_image_names_the_field_and_which_image() -> None:
    """Images are parts of messages; the place of the object in memory says nothing."""
    with pytest.raises(ExpertFlowError) as caught:
        ImagePreprocessor("/nowhere").read(ImagePrompt("a", [b"no image"]), "/nowhere")
    error = to_api_error(caught.value, ChatCall.names)
    assert error.param == "messages" and error.message.startswith("image 1 cannot be read")
    assert "0x" not in error.message


def test_a_name_of_one_letter_is_named() -> None:
    """`n` stood in "int" already."""
    with pytest.raises(ApiError, match=r"^n: ") as caught:
        read_body({"prompt": "a", "n": 0}, CompletionBody)
    assert caught.value.param == "n"


def test_limits_have_the_names_of_the_body() -> None:
    """Whoever sent max_tokens does not know max_new_tokens."""
    error = RequestError("must be from 0 to max_new_tokens, which is 2", "min_new_tokens")
    assert to_api_error(error).message.startswith("min_tokens must be from 0 to max_tokens, which is 2")
    own = to_api_error(error, {"max_new_tokens": "max_output_tokens"})
    assert "to max_output_tokens" in own.message
