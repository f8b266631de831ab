"""Details of a step's parts: those of one prompt add up, those of a row that is computed again replace the others."""

from __future__ import annotations

from expertflow.ipc.messages import RowDetails, TokenLogprob
from expertflow.workers.compute.details import join_details
from expertflow.workers.scheduler.request_details import Details, RequestDetails

ENTRIES = [TokenLogprob(token, -0.5, 1) for token in range(6)]
ONE, TWO = b"\1\0", b"\2\0"


def part(start: int, stop: int, logprob: TokenLogprob | None = None) -> RowDetails:
    """What the positions from `start` to `stop` tell of a prompt of five tokens."""
    return RowDetails(
        logprob, ENTRIES[start + 1 : min(stop + 1, 5)], start + 1, (ONE + TWO) * (stop - start), start, top_k=1
    )


def test_parts_of_a_prompt_are_joined_in_a_step_and_over_steps() -> None:
    """Chunks may come in one step, in several, and again after a death."""
    first, second, third = part(0, 2), part(2, 4), part(4, 5, ENTRIES[5])
    assert join_details(None, first) is first
    joined = join_details(join_details(first, second), third)
    assert joined == part(0, 5, ENTRIES[5])
    assert join_details(joined, first) is first
    request = RequestDetails(Details(0, 0, routed_experts=True), prompt=5)
    assert request.missing
    for found in (first, first, second, first, join_details(second, third)):
        request.add(found, layers=2)
    assert not request.missing and request.prompt_logprobs == [None, *ENTRIES[1:5]]
    routes = request.routed_experts(4, experts=300)
    assert routes is not None and (routes.shape, routes.dtype) == ((4, 2, 1), "uint16")
    assert routes.data == (ONE + TWO) * 4
