"""Compare what came out of a round with the quiet run: nothing lost, doubled or different."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .requests import Ended, PlannedRequest

Output = tuple[list[int], str]
"""Token ids and text."""


def find_faults(
    planned: Sequence[PlannedRequest], ended: Iterable[Ended], quiet: Mapping[int, Output]
) -> list[tuple[str, str]]:
    """Return the kind of each fault ('lost', 'doubled', 'different', 'failed') and a sentence about it."""
    by_number: defaultdict[int, list[Ended]] = defaultdict(list)
    for each in ended:
        by_number[each.number].append(each)
    return [
        fault for request in planned for fault in _faults_of(by_number[request.number], request, quiet[request.number])
    ]


def _faults_of(ended: list[Ended], request: PlannedRequest, quiet: Output) -> Iterator[tuple[str, str]]:
    if not ended:
        yield "lost", f"request {request.number} has no end"
    if len(ended) > 1:
        yield "doubled", f"request {request.number} has {len(ended)} ends: {Counter(each.way for each in ended)}"
    for each in ended:
        yield from _faults_of_one(each, quiet)


def _faults_of_one(each: Ended, quiet: Output) -> Iterator[tuple[str, str]]:
    name = f"request {each.number} ({each.way})"
    if each.error:
        yield "failed", f"{name}: {each.error}"
        return
    if each.ends != 1:
        yield ("doubled" if each.ends else "lost"), f"{name}: its end was told {each.ends} times"
    if each.streamed_ids is not None and each.streamed_ids != each.token_ids:
        yield "different", f"{name}: its pieces {_place(each.streamed_ids, each.token_ids)} from its result"
    if each.token_ids != quiet[0]:
        yield "different", f"{name}: {_place(each.token_ids, quiet[0])} from the quiet run"
    elif each.text != quiet[1]:
        yield "different", f"{name}: same tokens, another text: {each.text[-40:]!r}, quiet {quiet[1][-40:]!r}"


def _place(ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    return f"differ at token {first} of {len(ours)} and {len(theirs)}"
