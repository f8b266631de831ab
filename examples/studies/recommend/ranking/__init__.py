"""Ranking of all items: the place of the one that was taken, and the measures made of it."""
