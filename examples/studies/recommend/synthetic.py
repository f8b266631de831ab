"""A small made data set with tastes that drift, for tests and the quick form."""

from __future__ import annotations

import numpy as np

from .readers.rows import Interaction, ItemFacts, Ratings, build_ratings

TASTES = (
    "space robot galaxy", "love wedding heart", "murder detective clue", "ghost haunted scream", "war soldier battle",
    "school comedy prank",
)  # fmt: skip
DAY = 86_400


def make_ratings(users: int = 120, items: int = 90, rows: int = 4000, seed: int = 0) -> Ratings:
    """Return ratings in which a user likes one taste, and each item has a taste and a time at which it is popular."""
    random = np.random.default_rng(seed)
    taste_of_item, taste_of_user = random.integers(len(TASTES), size=items), random.integers(len(TASTES), size=users)
    peak_of_item = random.uniform(0, 1, items)
    interactions = []
    for row in range(rows):
        user, now = int(random.integers(users)), row / rows
        liked = taste_of_item == taste_of_user[user]
        weight = np.exp(-8 * (peak_of_item - now) ** 2) * np.where(liked, 8.0, 1.0)
        item = int(random.choice(items, p=weight / weight.sum()))
        rating = float(random.choice([4, 5]) if liked[item] else random.choice([2, 3, 4]))
        interactions.append(Interaction(f"u{user}", f"i{item}", rating, int(now * 1000 * DAY)))
    facts = {f"i{item}": _facts(item, int(taste), random) for item, taste in enumerate(taste_of_item)}
    return build_ratings("made", interactions, facts, {"group": {f"u{user}": f"g{user % 3}" for user in range(users)}})


def _facts(item: int, taste: int, random: np.random.Generator) -> ItemFacts:
    words = TASTES[taste].split()
    first, second = random.permutation(words)[:2]
    return ItemFacts(f"The {first} and the {second} {item}", (words[0],), 1950 + item % 60)
