"""What a program meets through the public classes can be imported from the package, so that it can be annotated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints, is_typeddict

import expertflow
import pytest

PRIVATE = {"BatchUpdates", "ClientRequest", "ClientState", "TextCodec", "ExpertFlowError", "Resources"}
"""Parts of the constructors that only the package calls, and what its own commands read of an engine (`Resources`);
errors have their own module, `expertflow.errors`."""
CLASSES = [name for name in expertflow.__all__ if inspect.isclass(getattr(expertflow, name, None))]


def types_in(hint: Any) -> Iterator[type]:
    """Yield the classes of the package in an annotation, but not the names of keywords."""
    for inner in get_args(hint):
        yield from types_in(inner)
    if inspect.isclass(hint) and hint.__module__.startswith("expertflow") and not is_typeddict(hint):
        yield hint


def members_of(cls: type) -> Iterator[Any]:
    """Yield what has annotations: the class and its public methods and properties."""
    yield cls
    for name, member in inspect.getmembers(cls):
        if not name.startswith("_"):
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function):
                yield function


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_public_class_gives_is_public(name: str) -> None:
    for member in members_of(getattr(expertflow, name)):
        for field, hint in get_type_hints(member).items():
            if field.startswith("_"):
                continue
            missing = {cls.__name__ for cls in types_in(hint)} - set(expertflow.__all__) - PRIVATE
            assert not missing, f"{member.__qualname__}: {field}"


def test_every_public_name_is_there() -> None:
    assert {name for name in expertflow.__all__ if not hasattr(expertflow, name)} == set()
    assert len(CLASSES) > 15
