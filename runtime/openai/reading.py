"""Bytes of a body to its struct: JSON of bounded depth, then names, then types. Every fault is a short ApiError."""

from __future__ import annotations

from threading import Lock
from typing import Any, TypeVar

import msgspec

from .errors import ApiError, refuse
from .fields import check_names

MAX_DEPTH = 64
"""Nested lists and objects of a body. Templates and schemas recurse into them."""
T = TypeVar("T", bound=msgspec.Struct)
_CONVERTING = Lock()
"""Held to convert: msgspec 0.22 is not safe for conversions in several threads."""


def read_body(raw: bytes | dict[str, Any], kind: type[T]) -> tuple[T, list[str]]:
    """Return the body and the names of fields that are ignored. Raises ApiError (400)."""
    content = read_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(content, dict):
        raise refuse("The body must be a JSON object")
    _check_depth(content)
    ignored = check_names(content, kind)
    given = {name: value for name, value in content.items() if value is not None}
    try:
        with _CONVERTING:
            return msgspec.convert(given, kind), ignored
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def read_json(raw: bytes) -> Any:
    """Return the content of JSON. Raises ApiError (400)."""
    try:
        return msgspec.json.decode(raw)
    except RecursionError as error:
        raise _too_deep() from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse(f"The body is not JSON: {error}", code="invalid_json") from error


def _check_depth(content: Any) -> None:
    """Raise ApiError if lists and objects nest deeper than `MAX_DEPTH`. Walks level by level, without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _members(outer) if isinstance(inner, (dict, list))]
        if not level:
            return
    raise _too_deep()


def _members(outer: Any) -> Any:
    return outer.values() if isinstance(outer, dict) else outer


def _too_deep() -> ApiError:
    return refuse(f"The body nests deeper than {MAX_DEPTH} levels", code="too_deep")


def _invalid(error: msgspec.ValidationError) -> ApiError:
    """Return the error with the field that msgspec names (`… - at `$.stop[0]``)."""
    text, _, path = str(error).partition(" - at ")
    param = path.strip("`").removeprefix("$").lstrip(".") or None
    if param is None and text.startswith("Object missing required field"):
        param = text.rpartition("field ")[2].strip("`")
    return refuse(f"{param}: {text}" if param and f"`{param}`" not in text else text, param=param)
