"""Errors that decoders raise for bytes that are no valid content."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of msgspec's decoders: wrong form or type, a text that is not UTF-8, too much nesting."""
