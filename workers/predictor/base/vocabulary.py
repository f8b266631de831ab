"""Strings of token ids: from a model's tokenizer, or from two traces that name tokens by strings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...traces.trace import Trace

Spelling = Callable[[int], str | None]
"""Returns the string of a token id, None if it has none."""


def tokenizer_spelling(folder: str) -> Spelling | None:
    """Return the spelling by the folder's tokenizer.json, None without that file."""
    file = Path(folder) / "tokenizer.json"
    if not folder or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).id_to_token


def align_vocabularies(trace: Trace, vocabulary: list[str] | None) -> Trace:
    """Return the trace with the token ids of `vocabulary`; its other strings get the ids behind those.

    A trace without strings stays as it is.
    """
    if trace.vocabulary is None or vocabulary is None:
        return trace
    ids = {name: number for number, name in enumerate(vocabulary)}
    for name in trace.vocabulary:
        ids.setdefault(name, len(ids))
    new_ids = np.array([ids[name] for name in trace.vocabulary], dtype=np.int64)
    return replace(trace, token_ids=new_ids[trace.token_ids], vocabulary=list(ids))
