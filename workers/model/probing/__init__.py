"""Tries on a tiny copy of a model which row operations change no result."""
