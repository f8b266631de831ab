"""Text to ids and back by the `tokenizers` library, which is loaded at the first text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...configs.checks import is_text
from ...errors import UsageError
from .chat import ChatTemplates, has_chat_template
from .conversation import Conversation
from .tokenizer import load_tokenizer, refusing_library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"
"""The character that a decoder writes for bytes that are no whole character yet."""

_DECODED_TOKENS = 10_000
"""Tokens whose own text is kept: a stream asks for it at every token."""


class TextCodec:
    """The tokenizer of a model folder. Without `tokenizer.json` text is refused, token ids are not."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "tokenizer.json"
        self._loaded: Tokenizer | None = None
        self._templates = ChatTemplates(self._file.parent)
        self._decode_token = lru_cache(_DECODED_TOKENS)(self._decode_alone)

    def close(self) -> None:
        """End the process that renders chat templates, if there is one. Idempotent."""
        self._templates.close()

    @property
    def available(self) -> bool:
        """Return whether the folder has a tokenizer."""
        return self._file.is_file()

    def missing(self) -> UsageError:
        """Return the error for a prompt of text where there is no tokenizer."""
        what = "this model has no tokenizer.json, so a prompt cannot be text"
        return UsageError(what, str(self._file.parent), "Pass the prompt as a list of token ids")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a prompt, with the special tokens that the tokenizer adds.

        Raises UsageError without a tokenizer, and for lone surrogates.
        """
        self._check(text)
        return self._encode(text, add_special_tokens)

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Return the ids of a conversation of texts in the model's chat template.

        Raises UsageError without a template or a tokenizer, and for a conversation that the template cannot render.
        """
        return self._encode(self.render_chat(conversation), False)

    def render_chat(self, conversation: Conversation) -> str:
        """Return the text of a conversation, its special tokens included. Raises what `encode_chat` raises."""
        if not self.available:
            raise self.missing()
        return self._templates.render(conversation)

    @property
    def has_chat_template(self) -> bool:
        """Return whether `encode_chat` can work."""
        return self.available and has_chat_template(self._file.parent)

    @property
    def is_chat_model(self) -> bool:
        """Return whether the chat template writes special tokens, as that of a model trained on conversations does."""
        template = self.chat_template
        if not (template and self.available):
            return False
        added = self._tokenizer().get_added_tokens_decoder().values()
        return "_token" in template or any(token.special and str(token) in template for token in added)

    @property
    def chat_template(self) -> str:
        """Return the chat template of a conversation without tools; empty if there is none, or it cannot be read."""
        return self._templates.default

    def decode(self, token_ids: Sequence[int], special_tokens: bool = False) -> str:
        """Return the text of generated ids, without special tokens unless asked; empty without a tokenizer."""
        if len(token_ids) == 1:
            return self._decode_token(token_ids[0], special_tokens)
        return self._decode(token_ids, special_tokens)

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it (`Ġthe`, `<0x0A>`); empty for an id without a token."""
        return self._tokenizer().id_to_token(token_id) or "" if self.available else ""

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        tokenizer = self._tokenizer()
        with refusing_library(self._file, "the tokenizer cannot read this text"):
            return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _decode_alone(self, token_id: int, special_tokens: bool) -> str:
        return self._decode([token_id], special_tokens)

    def _decode(self, token_ids: Sequence[int], special_tokens: bool) -> str:
        if self._loaded is None and not self.available:
            return ""
        tokenizer = self._tokenizer()
        with refusing_library(self._file, "the tokenizer cannot write these ids"):
            return tokenizer.decode(token_ids, skip_special_tokens=not special_tokens)

    def _check(self, text: str) -> None:
        if not self.available:
            raise self.missing()
        if not is_text(text):
            raise UsageError(f"cannot be encoded in UTF-8: {ascii(text[:40])}", "prompt", "Give text, or token ids")

    def _tokenizer(self) -> Tokenizer:
        if self._loaded is None:
            self._loaded = load_tokenizer(self._file.parent)
        return self._loaded


class TextStream:
    """Streamed text of a growing output. A delta never splits a character; all deltas add up to the whole text."""

    def __init__(self, codec: TextCodec, special_tokens: bool = False, end_ids: Collection[int] = ()) -> None:
        """`special_tokens`: keep special tokens in the text, except one of `end_ids` at its end."""
        self._codec, self._special_tokens = codec, special_tokens
        self._end_ids = frozenset(end_ids)
        self._sent = 0
        self._context = 0
        self._settled = 0

    def delta(self, token_ids: Sequence[int], done: bool) -> str:
        """Return the new text, given all ids so far; with `done` everything that is left."""
        return self.finish(token_ids) if done else self.advance(token_ids, len(token_ids))

    def advance(self, token_ids: Sequence[int], count: int) -> str:
        """Return the new text of the first `count` ids, without a character that is not complete yet.

        Only a window of the ids is decoded. A token is decoded behind those before it, because its text may depend on
        them (a leading space).
        """
        before = self.whole(token_ids[self._context : self._settled])
        now = self.whole(token_ids[self._context : count])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self._context, self._settled = self._settled, count
        fresh = now[len(before) :]
        self._sent += len(fresh)
        return fresh

    def finish(self, token_ids: Sequence[int]) -> str:
        """Return everything that is left, given all ids; all of them are decoded."""
        return self.whole(token_ids)[self._sent :]

    def whole(self, token_ids: Sequence[int]) -> str:
        """Return the text of these ids, whatever was returned before."""
        if self._special_tokens and token_ids and token_ids[-1] in self._end_ids:
            token_ids = token_ids[:-1]
        return self._codec.decode(token_ids, self._special_tokens)
