"""Two traces that name tokens by strings, brought to one numbering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...traces.trace import Trace


def align_vocabularies(trace: Trace, vocabulary: list[str] | None) -> Trace:
    """The trace with the token numbers of `vocabulary`; strings that are not in it follow behind."""
    if trace.vocabulary is None or vocabulary is None:
        return trace
    numbers = {name: number for number, name in enumerate(vocabulary)}
    for name in trace.vocabulary:
        numbers.setdefault(name, len(numbers))
    turned = np.array([numbers[name] for name in trace.vocabulary], dtype=np.int64)
    return replace(trace, token_ids=turned[trace.token_ids], vocabulary=list(numbers))
