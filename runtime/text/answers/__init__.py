"""Parsers of answers: what a model has written as reasoning, as text for the user and as calls of tools."""
