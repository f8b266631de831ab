"""Text to ids and back by the `tokenizers` library, which is loaded at the first text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...configs.checks import is_text
from ...errors import UsageError
from .chat import has_chat_template, render_chat
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"
"""The character that a decoder writes for bytes that are no whole character yet."""


class TextCodec:
    """The tokenizer of a model folder. Without `tokenizer.json` text is refused, token ids are not."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "tokenizer.json"
        self._loaded: Tokenizer | None = None

    @property
    def available(self) -> bool:
        """Return whether the folder has a tokenizer."""
        return self._file.is_file()

    def missing(self) -> UsageError:
        """Return the error for a prompt of text where there is no tokenizer."""
        what = "this model has no tokenizer.json, so a prompt cannot be text"
        return UsageError(what, str(self._file.parent), "Pass the prompt as a list of token ids")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, with the special tokens that the tokenizer adds.

        Raises UsageError without a tokenizer, and for lone surrogates.
        """
        self._check(text)
        return self._tokenizer().encode(text).ids

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a user's message in the model's chat template, up to where the answer begins.

        Raises UsageError without a template or a tokenizer, and for a text that the template cannot render.
        """
        self._check(text)
        return self._tokenizer().encode(render_chat(self._file.parent, text), add_special_tokens=False).ids

    @property
    def has_chat_template(self) -> bool:
        """Return whether `encode_chat` can work."""
        return self.available and has_chat_template(self._file.parent)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of generated ids without special tokens; empty without a tokenizer."""
        return self._tokenizer().decode(token_ids, skip_special_tokens=True) if self.available else ""

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

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._sent = 0
        self._context = 0
        self._settled = 0

    def delta(self, token_ids: list[int], done: bool) -> str:
        """Return the new text, given all ids so far; with `done` everything that is left.

        Only a window of the ids is decoded, at the end all of them. A token is decoded behind those before it, because
        its text may depend on them (a leading space).
        """
        if done:
            return self._rest(token_ids)
        before = self._codec.decode(token_ids[self._context : self._settled])
        now = self._codec.decode(token_ids[self._context :])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self._context, self._settled = self._settled, len(token_ids)
        fresh = now[len(before) :]
        self._sent += len(fresh)
        return fresh

    def _rest(self, token_ids: list[int]) -> str:
        return self._codec.decode(token_ids)[self._sent :]
