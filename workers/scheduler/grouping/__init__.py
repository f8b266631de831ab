"""Grouping of rows into units: rows that use the same experts activate fewer of them together."""
