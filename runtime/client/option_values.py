"""Reads values of options as plain Python numbers; numpy's count, a bool in place of a number does not."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import RequestError

MAX_DEADLINE_S = 10**9
MAX_STOPS, MAX_STOP_LENGTH = 16, 1000
MAX_SAMPLES = 128
MAX_USER_LENGTH = 200


def read_prompt_ids(prompt: Sequence[int]) -> list[int]:
    """Return the ids of a prompt. Raises RequestError."""
    if isinstance(prompt, (bytes, bytearray, memoryview)):  # iterates as integers
        raise RequestError(f"cannot be {type(prompt).__name__}", "prompt", "Decode a text: prompt.decode()")
    try:
        return [read_integer(token, "prompt") for token in prompt]
    except TypeError as error:
        remedy = "A prompt is a text or a list of token ids; for a single prompt of ids write [[5, 9, 11]]"
        raise RequestError(f"cannot be {type(prompt).__name__}", "prompt", remedy) from error


def read_optional_ids(ids: Iterable[int] | None, where: str) -> list[int] | None:
    """Return token ids, or None. Raises RequestError."""
    return None if ids is None else read_token_ids(ids, where)


def read_token_ids(ids: Iterable[int], where: str) -> list[int]:
    """Return token ids. Raises RequestError for what is no list, or holds a negative number."""
    remedy = "Give token ids, or an empty list to never stop at one"
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise RequestError(f"must be a list of token ids, not {ids!r}", where, remedy)
    numbers = [read_integer(token, where) for token in ids]
    if negative := [token for token in numbers if token < 0]:
        raise RequestError(f"has {negative[0]}, which is not a token id", where, remedy)
    return numbers


def read_logit_bias(biases: Mapping[int, float], where: str) -> dict[int, float]:
    """Return a bias by token id. Raises RequestError for what is no mapping of numbers to numbers."""
    if not isinstance(biases, Mapping):
        remedy = "Give a dict, such as {50256: -100}"
        raise RequestError(f"must map token ids to numbers, not {biases!r}", where, remedy)
    return {read_integer(token, where): read_number(bias, where) for token, bias in biases.items()}


def read_user(value: str, where: str) -> str:
    """Return the name of a user. Raises RequestError for what is no text, or too long."""
    if not isinstance(value, str) or len(value) > MAX_USER_LENGTH:
        what = f"must be a text of up to {MAX_USER_LENGTH} characters, not {value!r:.60}"
        raise RequestError(what, where, "Leave it out, or give a short name")
    return value


def read_optional_integer(value: int | None, where: str) -> int | None:
    """Return the value as an int, or None. Raises RequestError."""
    return None if value is None else read_integer(value, where)


def read_optional_number(value: float | None, where: str) -> float | None:
    """Return the value as a float, or None. Raises RequestError."""
    return None if value is None else read_number(value, where)


def read_flag(value: Any, where: str) -> bool:
    """Return True or False. Raises RequestError for anything else."""
    if isinstance(value, bool):
        return value
    raise RequestError(f"must be True or False, not {value!r}", where, "Leave it out for False")


def read_optional_flag(value: Any, where: str) -> bool | None:
    """Return True, False or None. Raises RequestError for anything else."""
    if value is None or isinstance(value, bool):
        return value
    raise RequestError(f"must be True, False or None, not {value!r}", where, "None takes the engine's own setting")


def read_integer(value: Any, where: str) -> int:
    """Return the value as an int; numpy integers count, a bool is refused. Raises RequestError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"must be a whole number, not {value!r}", where, "Give an int")
    number = value if type(value) is int else operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise RequestError(f"does not fit 64 bits: {number}", where, "Give a smaller number")
    return number


def read_number(value: Any, where: str) -> float:
    """Return the value as a float; a bool is refused. Raises RequestError."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise RequestError(f"must be a number, not {value!r}", where, "Give a float")
    return float(value)


def read_seconds(value: Any, where: str) -> float | None:
    """Return seconds above 0, or None. Raises RequestError."""
    if value is None:
        return None
    seconds = read_number(value, where)
    if not 0 < seconds <= MAX_DEADLINE_S:
        what = f"must be seconds, above 0 and at most {MAX_DEADLINE_S:,}, not {seconds}"
        raise RequestError(what, where, "Leave it out for no deadline")
    return seconds


def read_count(value: Any, where: str) -> int:
    """Return a number of samples, from 1 to `MAX_SAMPLES`. Raises RequestError."""
    count = read_integer(value, where)
    if not 1 <= count <= MAX_SAMPLES:
        raise RequestError(f"must be from 1 to {MAX_SAMPLES}, not {count}", where, "Submit the prompt several times")
    return count


def read_stop(stops: Iterable[str], where: str) -> list[str]:
    """Return stop strings, each once. Raises RequestError for what is no list of texts, and for too many."""
    remedy = f"Give up to {MAX_STOPS} texts of up to {MAX_STOP_LENGTH:,} characters"
    if isinstance(stops, (str, bytes)) or not isinstance(stops, Iterable):
        raise RequestError(f"must be a list of texts, not {stops!r}", where, remedy)
    strings = list(dict.fromkeys(stops))
    for string in strings:
        if not isinstance(string, str) or not 0 < len(string) <= MAX_STOP_LENGTH:
            raise RequestError(f"has {string!r:.60}, which is no stop string", where, remedy)
    if len(strings) > MAX_STOPS:
        raise RequestError(f"has {len(strings)} texts", where, remedy)
    return strings
