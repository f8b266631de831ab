"""Chooses tokens from logits: settings, penalties, a mask, then the distribution; and what is told about the choice."""
