"""Errors in OpenAI's nested shape, each with its HTTP status."""

from __future__ import annotations

import re

import msgspec

from ...errors import BudgetError, BusyError, EngineError, ExpertFlowError, RequestError, UsageError

MAX_TEXT = 1000
"""Characters of an error's message: a body must not come back as megabytes of explanation."""
INVALID, MISSING, BUSY, SERVER = "invalid_request_error", "not_found_error", "rate_limit_error", "server_error"
_FIELD = re.compile(r"[A-Za-z_]\w*(?:\[\d+\]|\.\w+)*")
_LIMITS = re.compile(r"\b(max|min)_new_tokens\b")
_IMAGE = re.compile(r"image \d+")
"""Place of an error in an image of a prompt."""
BODY_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_ids": "stop_token_ids",
    "include_stop": "include_stop_str_in_output",
    "structured": "structured_outputs",
    "eos_ids": "ignore_eos",
}
"""Option of a `Request` -> field of a body, where the names differ."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The object that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The whole answer to a request that failed."""

    error: ErrorBody


class ApiError(Exception):
    """A body that cannot be answered. `status` is the HTTP status, `param` the field that is wrong."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.message = shorten(message)

    @property
    def answer(self) -> ErrorAnswer:
        """Return the error as an answer."""
        return ErrorAnswer(ErrorBody(self.message, self.kind, self.param, self.code))


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a body that is wrong (400)."""
    return ApiError(400, message, param=param, code=code)


def to_api_error(error: ExpertFlowError, names: dict[str, str] | None = None) -> ApiError:
    """Return an error of the client or the engine with its status. `names`: option -> field of this body."""
    kinds: list[tuple[type[ExpertFlowError], int, str, str | None]] = [
        (BusyError, 429, BUSY, "busy"),
        (BudgetError, 400, INVALID, "budget"),
        (RequestError, 400, INVALID, None),
        (UsageError, 400, INVALID, None),
        (EngineError, 503, SERVER, "engine"),
    ]
    for cls, status, kind, code in kinds:
        if isinstance(error, cls):
            param = _param(error, names or {}) if status == 400 else None
            return ApiError(status, _as_in_body(_text(error, param), names or {}), kind=kind, param=param, code=code)
    return ApiError(500, _text(error, None), kind=SERVER, code=error.code)


def _as_in_body(text: str, names: dict[str, str]) -> str:
    """Return a text with the names of the body for the limits of an output."""
    return _LIMITS.sub(lambda found: names.get(found[0]) or BODY_NAMES[found[0]], text)


def shorten(text: str) -> str:
    """Return the text, its middle left out if it is longer than `MAX_TEXT`."""
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]} … {text[-half:]}"


def _param(error: ExpertFlowError, names: dict[str, str]) -> str | None:
    option = "prompt" if _IMAGE.fullmatch(error.where) else error.where
    where = names.get(option) or BODY_NAMES.get(option) or option
    return where if _FIELD.fullmatch(where) else None


def _text(error: ExpertFlowError, param: str | None) -> str:
    """Return the error's sentence and its remedy, with the name that the field has in the body."""
    subject = error.where if _IMAGE.fullmatch(error.where) else param or error.where
    sentence = f"{subject} {error.what}" if error.lacks_subject and subject else error.what
    return f"{sentence}. {error.remedy}" if error.remedy else sentence
