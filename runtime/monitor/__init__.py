"""Figures of a running engine, as tables and progress."""
