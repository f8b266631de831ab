"""Stop strings: the text ends as the definition on the whole text says, whatever pieces the tokens come in."""

from __future__ import annotations

import pytest
from expertflow.runtime.text.codec import TextCodec, TextStream
from expertflow.runtime.text.stop_strings import StoppingText, StopRule
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

PIECES = ["a", "b", "c", " a", "ab", "abc", "cab", "é", "x🐒", *(letter for letter in "ÃĪ©ðŁĲĴ")]
"""Texts of tokens; the last are single bytes of é and of the monkey, in the letters of byte-level tokenizers."""
SPECIAL = len(PIECES)
STOPS = st.lists(st.text("abc é🐒", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)
TOKENS = st.lists(st.integers(0, SPECIAL), max_size=24)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokens")
    bytes_to_letters = {piece: piece if len(piece) == 1 and piece in "ÃĪ©ðŁĲĴ" else _letters(piece) for piece in PIECES}
    tokenizer = Tokenizer(models.WordLevel({bytes_to_letters[piece]: i for i, piece in enumerate(PIECES)}, "a"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextCodec(str(folder))


def _letters(text: str) -> str:
    """Return the text in byte-level letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in text.encode())


def naive(codec: TextCodec, tokens: list[int], rule: StopRule) -> tuple[str, int, str | None]:
    """Return text, number of tokens and stop string: the first prefix of the output in which a stop string ends."""
    texts = [""]
    for count in range(1, len(tokens) + 1):
        text = codec.decode(tokens[:count])
        texts.append(texts[-1] if text.endswith("\ufffd") else text)
    ignored = len(texts[min(rule.min_new_tokens, len(tokens))])
    whole = codec.decode(tokens)
    for count, text in [*enumerate(texts), (len(tokens), whole)]:
        for end in range(ignored + 1, len(text) + 1) if count > rule.min_new_tokens else ():
            for string in sorted(rule.strings, key=len, reverse=True):
                if text[:end].endswith(string):
                    return text[: end if rule.include else end - len(string)], count, string
    return whole, len(tokens), None


@given(tokens=TOKENS, stops=STOPS, include=st.booleans(), minimum=st.integers(0, 8), data=st.data())
def test_the_text_ends_as_the_definition_says(
    codec: TextCodec, tokens: list[int], stops: tuple[str, ...], include: bool, minimum: int, data: st.DataObject
) -> None:
    """And what was shown is never taken back; what is held back may still begin a stop string."""
    rule = StopRule(stops, include, minimum)
    stopping, shown, count = StoppingText(TextStream(codec), rule), "", 0
    while count < len(tokens) and stopping.match is None:
        count = min(len(tokens), count + data.draw(st.integers(1, 5)))
        stopping.read(tokens[:count])
        shown += stopping.take()
        held = stopping.text[len(shown) :]
        assert stopping.text.startswith(shown) and len(held) < max(map(len, stops))
        assert stopping.match or not held or any(string.startswith(held) for string in stops)
    stopping.read(tokens, done=True)
    shown += stopping.take()
    text, ended, string = naive(codec, tokens, rule)
    assert (stopping.text, stopping.token_count) == (text, ended)
    assert shown == text
    assert (stopping.match.string if stopping.match else None) == string


def test_the_string_that_ends_first_wins_and_of_two_the_longer(codec: TextCodec) -> None:
    """As whoever reads character by character would find them."""
    for stops, text, string in ((("cab", "b"), "a", "b"), (("b", "ab"), "", "ab"), (("bcab", "ca"), "ab", "ca")):
        stopping = StoppingText(TextStream(codec), StopRule(stops))
        stopping.read([0, 1, PIECES.index("cab")])
        assert stopping.match is not None
        assert (stopping.text, stopping.match.string) == (text, string)
