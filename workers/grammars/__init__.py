"""Grammars of structured output: compiled by llguidance (extra `structured`), applied as masks of tokens."""
