"""Token strings as the model's tokenizer has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Spelling = Callable[[int], str | None]
"""The string of a token id, None if it has none."""


def tokenizer_spelling(folder: str) -> Spelling | None:
    """From the folder's tokenizer.json; None without one."""
    file = Path(folder) / "tokenizer.json"
    if not folder or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).id_to_token
