"""Contractions as the VQA challenge restores their apostrophes."""

from __future__ import annotations

_SINGLE = """
ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't shan't
shouldn't wasn't weren't won't wouldn't could've might've must've not've should've they've we've what've where've
who've would've you've he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd how'll it'll
somebody'll someone'll something'll they'll what'll who'll why'll you'll he's how's somebody's someone's that's there's
what's when's where's who's why's there're they're what're why're you're ma'am o'clock 'twas y'all
"""
"""A word without its one apostrophe gets it back."""

_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've somebody'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
"""A word with one of its two apostrophes gets the other back."""

_IRREGULAR = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}
"""As the published table has them; its upper-case entries are never met, since answers are in lower case by then."""


def _without_one(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


CONTRACTIONS: dict[str, str] = {
    **{short: word for word in (*_SINGLE.split(), *_DOUBLE.split()) for short in _without_one(word)},
    **_IRREGULAR,
}
