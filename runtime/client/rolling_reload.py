"""A reload of the engines of a group, one after the other: all of them change, or none stays changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...errors import ExpertFlowError, error_from_code

Changes = dict[str, str | int | float | bool]
"""Field of the configuration -> value."""


class Member(NamedTuple):
    """One engine of a group."""

    name: str
    reload: Callable[[Changes], Changes]
    """Changes these fields and returns their earlier values. Raises ExpertFlowError: nothing has changed then."""


def reload_in_turn(members: Sequence[Member], changes: Changes) -> None:
    """Reload one engine after the other, so that the others serve meanwhile.

    Raises the error of the first engine that refuses or fails, under that engine's name. The engines that changed
    before it are changed back, the last one first; one that cannot be is named in the remedy.
    """
    changed: list[tuple[Member, Changes]] = []
    for member in members:
        try:
            changed.append((member, member.reload(changes)))
        except ExpertFlowError as error:
            raise _error_of(member, error, _change_back(changed)) from error


def _change_back(changed: list[tuple[Member, Changes]]) -> str:
    """Give the engines their earlier values; return in words what has become of them."""
    told: list[str] = []
    for member, previous in reversed(changed):
        try:
            member.reload(previous)
        except ExpertFlowError as error:
            told.append(f"{member.name} keeps the new settings, as it could not be changed back: {error.sentence}")
        else:
            told.append(f"{member.name} has its earlier settings again")
    return "; ".join(told) or "No engine of the group has changed"


def _error_of(member: Member, error: ExpertFlowError, others: str) -> ExpertFlowError:
    where = f"{error.where} of {member.name}" if error.where else member.name
    remedy = f"{error.remedy}. {others}" if error.remedy else others
    return error_from_code(error.code, error.what, where, remedy)
