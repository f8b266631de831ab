"""Log probabilities in the two forms of the API: four parallel lists (completions), and a list of objects (chats)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ...ipc.messages import TokenLogprob
from ..text.codec import TextCodec

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""
_INCOMPLETE = "\ufffd"


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a completion: parallel lists, an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(msgspec.Struct, frozen=True):
    """A likely token of a chat."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token of a chat."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a chat."""

    content: list[ChatLogprob]


Name = Callable[[int | None, int], str]
"""Function of the token before (None: none) and a token, to the token's text."""


class TokenNames:
    """Texts of single tokens: each as it reads behind the token before, so that the texts add up to the output."""

    def __init__(self, codec: TextCodec, as_ids: bool = False) -> None:
        """With `as_ids`, a token is called `token_id:ID`."""
        self._codec, self._as_ids = codec, as_ids

    def __call__(self, before: int | None, token: int) -> str:
        """Return the text of a token behind another one."""
        if self._as_ids:
            return f"token_id:{token}"
        if before is not None:
            prefix, both = self._decode([before]), self._decode([before, token])
            if both.startswith(prefix) and not prefix.endswith(_INCOMPLETE):
                return both[len(prefix) :]
        return self._decode([token])

    def _decode(self, ids: list[int]) -> str:
        return self._codec.decode(ids, special_tokens=True)


def completion_logprobs(
    ids: Sequence[int],
    listed: Sequence[TokenLogprob | None],
    names: Name,
    *,
    top: int,
    before: int | None = None,
    offset: int = 0,
) -> CompletionLogprobs:
    """Return the lists for `ids`, the first of which stands behind token `before` and at `offset` of the text.

    An entry without a log probability (the first token of a prompt) is null. `top`: alternatives of each token.
    """
    tokens, likeliest, offsets = [], [], []
    for token, entry in zip(ids, listed, strict=True):
        text = names(before, token)
        tokens.append(text)
        likeliest.append(None if entry is None else _top_texts(entry, text, before, names, top))
        offsets.append(offset)
        offset, before = offset + len(text), token
    values = [None if entry is None else finite(entry.logprob) for entry in listed]
    return CompletionLogprobs(tokens, values, likeliest, offsets)


def chat_logprobs(listed: Sequence[TokenLogprob], names: Name, *, top: int, before: int | None = None) -> ChatLogprobs:
    """Return the objects for a piece of output that stands behind token `before`."""
    content = []
    for entry in listed:
        text = names(before, entry.token_id)
        others = [(names(before, token), finite(logprob)) for token, logprob in entry.top[:top]]
        likeliest = [TopLogprob(other, logprob, _bytes(other)) for other, logprob in others]
        content.append(ChatLogprob(text, finite(entry.logprob), _bytes(text), likeliest))
        before = entry.token_id
    return ChatLogprobs(content)


def finite(logprob: float) -> float:
    """Return the value, or `LOWEST` instead of minus infinity."""
    return max(logprob, LOWEST)


def _top_texts(entry: TokenLogprob, text: str, before: int | None, names: Name, top: int) -> dict[str, float]:
    """Return text -> log probability of the likeliest tokens and of the chosen one; of equal texts the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in entry.top[:top]:
        found.setdefault(names(before, token), finite(logprob))
    found.setdefault(text, finite(entry.logprob))
    return found


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))
