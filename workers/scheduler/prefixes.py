"""Prefixes that compute keeps, in blocks: which there are, which rows begin with them, and which go first.

Only the scheduler decides; compute holds the copies. Messages are handled in order, so a block is there until the
message that drops it, whatever steps were sent before.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...ipc.messages import KeepPrefix
from .requests import RequestState

BLOCK = 32
"""Positions of a block. Batch-invariant rows have blocks of one chunk: only these have the same bits in every row."""

Key = tuple[int, bytes]
"""Number of the block before (0, or -1 for a batch-invariant row, at the beginning), and the ids of this one."""


@dataclass(frozen=True, slots=True)
class FoundPrefix:
    """Blocks with which a row may begin: their numbers, and their positions together."""

    blocks: list[int]
    count: int = 0


@dataclass(frozen=True, slots=True)
class PrefixBlock:
    """A block that compute holds."""

    number: int
    size: int


class PrefixIndex:
    """Blocks by the ids before them and in them. A chain's later blocks are never used later than its earlier ones."""

    def __init__(self, first_number: int, chunk: int) -> None:
        """Number blocks from `first_number` on; `chunk`: positions of a step of a long prompt, 0: all."""
        self._number, self._chunk = first_number, chunk
        self._blocks: OrderedDict[Key, PrefixBlock] = OrderedDict()
        """In the order of their last use."""
        self.enabled = False
        """This model's rows can be copied exactly, and prefixes are wanted."""
        self.positions = 0
        """Positions of all blocks."""
        self.queries = self.hits = self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, request: RequestState) -> FoundPrefix:
        """Return the longest prefix for a row. At least one position remains to be computed."""
        size = self._size(request)
        if not size:
            return FoundPrefix([])
        blocks = [self._blocks[key] for key in self._chain(request, request.prefill_length - 1)]
        return FoundPrefix([block.number for block in blocks], len(blocks) * size)

    def use(self, request: RequestState, found: FoundPrefix) -> None:
        """Count that a row begins with what was found for it."""
        self.queries += self.enabled
        self.hits += bool(found.count)
        self.hit_tokens += found.count

    def shared(self, request: RequestState, other: RequestState) -> int:
        """Return how many more positions `request` would find if `other` had run before."""
        size = self._size(request)
        if not size or self._size(other) != size or request.batch_invariant != other.batch_invariant:
            return 0
        own, others = _ids_of(request, size, request.prefill_length - 1), _ids_of(other, size, other.length)
        common = 0
        for one, two in zip(own, others, strict=False):
            if one != two:
                break
            common += size
        return max(0, common - self.find(request).count) if common else 0

    def keep(self, request: RequestState, unit: int, room: int) -> tuple[KeepPrefix | None, list[int]]:
        """Add the blocks of a row that has run. Return the message for compute, and the blocks to drop before it.

        `room`: positions that all blocks may take. Blocks that were used less recently make room.
        """
        size = self._size(request)
        last = request.prefill_length if request.batch_invariant else request.length - 1
        chain = list(self._chain(request, last)) if size else []
        ids = list(_ids_of(request, size, last))[len(chain) :] if size else []
        self._touch(chain)
        dropped = self._drop(room - size * len(ids), set(chain)) if ids else []
        ids = ids[: max(0, (room - self.positions) // size)] if ids else []
        if not ids:
            return None, dropped
        begin = len(chain) * size
        blocks = [self._add(chain, block, size, request) for block in ids]
        self._touch(chain)
        return KeepPrefix(unit=unit, row=request.number, begin=begin, size=size, blocks=blocks), dropped

    def make_room(self, requests: Iterable[RequestState], room: int) -> list[int]:
        """Return the blocks to drop so that the others take `room` positions; those of `requests` go last."""
        for request in requests:
            if self._size(request):
                self._touch(list(self._chain(request, request.prefill_length - 1)))
        return self._drop(room)

    def clear(self) -> None:
        """Forget all blocks: their compute is gone."""
        self._blocks.clear()
        self.positions = 0

    def _size(self, request: RequestState) -> int:
        """Return the positions of a row's blocks; 0: it has none."""
        if not self.enabled or not request.may_share_prefix:
            return 0
        return self._chunk if request.batch_invariant else BLOCK

    def _chain(self, request: RequestState, length: int) -> Iterator[Key]:
        """Yield the keys of the blocks with which the first `length` ids of a row begin."""
        before = _root(request)
        for ids in _ids_of(request, self._size(request), length):
            block = self._blocks.get((before, ids))
            if block is None:
                return
            yield before, ids
            before = block.number

    def _add(self, chain: list[Key], ids: bytes, size: int, request: RequestState) -> int:
        """Add a block after the blocks of `chain`, which it joins; return its number."""
        self._number += 1
        key = (self._blocks[chain[-1]].number if chain else _root(request), ids)
        self._blocks[key] = PrefixBlock(self._number, size)
        chain.append(key)
        self.positions += size
        return self._number

    def _touch(self, chain: Sequence[Key]) -> None:
        for key in reversed(chain):
            self._blocks.move_to_end(key)

    def _drop(self, room: int, spared: Collection[Key] = ()) -> list[int]:
        """Drop blocks until the others take `room` positions, the least recently used first, but none of `spared`."""
        dropped: list[int] = []
        for key in list(self._blocks):
            if self.positions <= room:
                break
            if key not in spared:
                block = self._blocks.pop(key)
                self.positions -= block.size
                dropped.append(block.number)
        return dropped


def _root(request: RequestState) -> int:
    return -1 if request.batch_invariant else 0


def _ids_of(request: RequestState, size: int, length: int) -> Iterator[bytes]:
    """Yield the ids of each whole block among the first `length` ids of a row."""
    ids = request.prompt_ids + request.tokens if length > len(request.prompt_ids) else request.prompt_ids
    for begin in range(0, length - size + 1, size):
        yield array("q", ids[begin : begin + size]).tobytes()
