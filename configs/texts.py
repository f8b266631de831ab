"""Texts that can be told to another process, and to a tokenizer."""

from __future__ import annotations


def is_text(value: str) -> bool:
    """Whether UTF-8 can say it: not what Python makes of undecodable words of a command line (lone surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
