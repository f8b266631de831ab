"""Compare tokens that a client gets again, as after a death of the scheduler, with those that it had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from expertflow.ipc.messages import TokenLogprob
from expertflow.runtime.client.request import ClientRequest


class Repeats:
    """Counts of tokens that came again, and what changed."""

    def __init__(self) -> None:
        self.tokens = 0
        self.changed: list[tuple[str, str]] = []

    def note(self, request: ClientRequest, token_ids: list[int], offset: int) -> None:
        """Compare tokens from `offset` on with those that were there."""
        known = request.tokens[offset : offset + len(token_ids)]
        self.tokens += len(known)
        if token_ids[: len(known)] != known:
            self.changed.append(("different", f"request {request.submit.request_id}: delivered tokens changed"))


@contextmanager
def repeats_watched() -> Iterator[Repeats]:
    """Watch every client of this process: the library itself takes new tokens only, and looks at no others."""
    repeats, original = Repeats(), ClientRequest.add_output

    def add_output(self: ClientRequest, token_ids: list[int], offset: int, logprobs: list[TokenLogprob]) -> bool:
        repeats.note(self, token_ids, offset)
        return original(self, token_ids, offset, logprobs)

    ClientRequest.add_output = add_output
    try:
        yield repeats
    finally:
        ClientRequest.add_output = original
