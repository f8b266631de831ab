"""Details of rows besides their tokens: logprobs of output and prompt, and the experts that were used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ...ipc.messages import NO_DETAILS, RowDetails, TokenLogprob
from ..model.unit import Unit
from ..model.unit_rows import UnitRow
from .experts.routing import RoutingCollector, RowRoutes
from .lockstep.unit import LockstepUnit
from .sampling.failure import RowFailed
from .sampling.logprobs import token_logprobs


class DetailCollector:
    """Collects the details of a step's rows, as far as their requests ask; parts of a step add up."""

    def __init__(self, routing: RoutingCollector) -> None:
        self._routing = routing
        self._found: dict[int, RowDetails] = {}

    def collect(self, unit: Unit, logits: Tensor, chosen: Sequence[int | RowFailed | None]) -> None:
        """Collect from a forward of `unit` that has just run, its logits [rows, vocabulary] and the chosen tokens.

        A row without a token (None) is in the middle of its prompt.
        """
        rows = [(index, row) for index, row in enumerate(unit.rows) if row.details != NO_DETAILS]
        if not rows:
            return
        logprobs = _output_logprobs(logits, chosen, rows)
        routes = self._routes(unit, [row.number for _, row in rows if row.details.routed_experts])
        for index, row in rows:
            own, (start, prompt_logprobs) = routes.get(row.number), _prompt_logprobs(unit, row)
            found = RowDetails(
                logprob=logprobs.get(index),
                prompt_logprobs=prompt_logprobs,
                prompt_start=start,
                routes=b"" if own is None else own.experts.tobytes(),
                routes_start=0 if own is None else own.start,
                top_k=0 if own is None else own.experts.shape[2],
            )
            self._found[row.number] = join_details(self._found.get(row.number), found)
        unit.release_prompts()

    def take(self) -> dict[int, RowDetails]:
        """Return what was found in a step, by row, and forget it."""
        found, self._found = self._found, {}
        return found

    def _routes(self, unit: Unit, numbers: list[int]) -> dict[int, RowRoutes]:
        return unit.routes if isinstance(unit, LockstepUnit) else self._routing.routes_of(numbers)


def join_details(before: RowDetails | None, found: RowDetails) -> RowDetails:
    """Return the details of two parts of a step; a part that begins the row anew replaces what was before."""
    is_first = found.prompt_start <= 1 and found.routes_start == 0
    if before is None or is_first:
        return found
    return RowDetails(
        logprob=found.logprob,
        prompt_logprobs=before.prompt_logprobs + found.prompt_logprobs,
        prompt_start=before.prompt_start,
        routes=before.routes + found.routes,
        routes_start=before.routes_start,
        top_k=before.top_k,
    )


def _output_logprobs(
    logits: Tensor, chosen: Sequence[int | RowFailed | None], rows: list[tuple[int, UnitRow]]
) -> dict[int, TokenLogprob]:
    """Return the logprobs of the chosen tokens that are asked for, by index of the row."""
    wanted = [(index, row.details.logprobs) for index, row in rows if row.details.logprobs is not None]
    pairs = [(i, token, count) for i, count in wanted if isinstance(token := chosen[i], int)]
    if not pairs:
        return {}
    indices, tokens, counts = zip(*pairs, strict=True)
    return dict(zip(indices, token_logprobs(logits[list(indices)], tokens, counts), strict=True))


def _prompt_logprobs(unit: Unit, row: UnitRow) -> tuple[int, list[TokenLogprob]]:
    """Return the entries of prompt tokens that the step says something of, and the index of the first of them."""
    if row.details.prompt_logprobs is None:
        return 1, []
    start, pieces = unit.prompt_logits(row.number)
    return start, list(_prompt_entries(pieces, row.prompt_ids[start:], row.details.prompt_logprobs))


def _prompt_entries(pieces: Iterator[Tensor], tokens: list[int], count: int) -> Iterator[TokenLogprob]:
    for logits in pieces:
        part, tokens = tokens[: len(logits)], tokens[len(logits) :]
        yield from token_logprobs(logits, part, [count] * len(part))
