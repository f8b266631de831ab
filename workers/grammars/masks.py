"""Masks of tokens: which tokens may come next in an output that follows a grammar.

A mask is a function of the grammar and the output so far. Compiled grammars and their states are kept, but only to be
faster: after a death they are built again from the tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError, RequestError
from .library import first_line, make_matcher, require_llguidance

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMARS = 32
MAX_STATES = 512


class GrammarMasks:
    """Masks for one model. The tokenizer is loaded at the first grammar."""

    def __init__(self, folder: Path, vocabulary: int, eos_ids: Sequence[int]) -> None:
        """Take the model's folder, the width of its logits, and the ids that end its outputs."""
        self._folder, self._vocabulary, self._eos_ids = folder, vocabulary, list(eos_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled = _RecentMatchers(MAX_GRAMMARS)
        self._states = _RecentMatchers(MAX_STATES)
        """States by grammar and output, each as it was after the mask was made."""

    def allowed(self, grammar: str, output_ids: Sequence[int], eos_ids: Sequence[int]) -> np.ndarray:
        """Return which tokens may come next, bool [vocabulary]; `eos_ids` only where the grammar lets the text end.

        Raises UsageError without llguidance, RequestError if the grammar fails or does not allow the output so far,
        CheckpointError for a tokenizer that cannot be used.
        """
        matcher = self._state(grammar, tuple(output_ids))
        allowed = self._unpack(matcher.compute_bitmask())
        _raise_error(matcher)
        may_end = matcher.is_accepting()
        for token in {*self._eos_ids, *eos_ids}:
            if 0 <= token < self._vocabulary:
                allowed[token] = may_end and token in eos_ids
        self._states.keep((grammar, *output_ids), matcher)
        return allowed

    def _state(self, grammar: str, output: tuple[int, ...]) -> LLMatcher:
        """Return the state after the output: one step further than a kept one, or from the beginning."""
        matcher = self._states.take((grammar, *output[:-1])) if output else None
        rest = output if matcher is None else output[-1:]
        if matcher is None:
            matcher = self._compile(grammar).deep_copy()
        if rest and not matcher.consume_tokens(list(rest)):
            error = first_line(matcher.get_error())
            raise RequestError(f"does not allow the output so far ({error})", "structured", "Is its beginning forced?")
        return matcher

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = self._compiled.take((grammar,)) or make_matcher(self._load(), grammar)
        _raise_error(matcher)
        self._compiled.keep((grammar,), matcher)
        return matcher

    def _load(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_grammar_tokenizer(self._folder, self._eos_ids)
        return self._tokenizer

    def _unpack(self, bits: bytes) -> np.ndarray:
        """Return bool [vocabulary] of a bit a token; tokens that only the logits have are not allowed."""
        known = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[: self._vocabulary]
        allowed = np.zeros(self._vocabulary, dtype=bool)
        allowed[: len(known)] = known
        return allowed


class _RecentMatchers:
    """The matchers that were kept last, by grammar and output."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str | int, ...], LLMatcher] = OrderedDict()

    def keep(self, key: tuple[str | int, ...], matcher: LLMatcher) -> None:
        self._kept[key] = matcher
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def take(self, key: tuple[str | int, ...]) -> LLMatcher | None:
        return self._kept.pop(key, None)


def load_grammar_tokenizer(folder: Path, eos_ids: Sequence[int]) -> LLTokenizer:
    """Load the vocabulary of tokenizer.json. Raises UsageError without llguidance, CheckpointError for a bad file."""
    require_llguidance()
    from llguidance import LLTokenizer

    file = folder / "tokenizer.json"
    try:
        return LLTokenizer(file.read_text(encoding="utf-8"), eos_token=list(eos_ids) or None)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        what = f"cannot be used for structured output ({first_line(str(error))})"
        raise CheckpointError(what, str(file), "Download the tokenizer again, or leave out `structured`") from error


def _raise_error(matcher: LLMatcher) -> None:
    if matcher.is_error():
        error = first_line(matcher.get_error())
        raise RequestError(f"cannot be followed ({error})", "structured", "Give a simpler schema or grammar")
