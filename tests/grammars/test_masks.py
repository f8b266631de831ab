"""Masks of grammars: functions of grammar and output, whatever was computed before."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import expertflow
import numpy as np
import pytest
from expertflow.errors import CheckpointError, RequestError, UsageError
from expertflow.runtime.text.codec import TextCodec
from expertflow.workers.grammars import masks
from expertflow.workers.grammars.library import choice_grammar, json_grammar, regex_grammar
from expertflow.workers.grammars.masks import GrammarMasks

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
VOCABULARY, EOS = 2048, 0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "tags": {"type": "array", "items": {"enum": ["a", 1]}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def make(vocabulary: int = VOCABULARY) -> GrammarMasks:
    return GrammarMasks(MODEL, vocabulary, [EOS])


def follow(grammar: str, seed: int, limit: int = 400, eos_ids: Sequence[int] = (EOS,)) -> list[int]:
    """Return an output of tokens drawn evenly among those that are allowed, until one of them ends it."""
    made, dice, output = make(), random.Random(seed), []
    while len(output) < limit:
        token = int(dice.choice(np.flatnonzero(made.allowed(grammar, output, eos_ids))))
        if token in eos_ids:
            return output
        output.append(token)
    raise AssertionError("it does not end")


def decode(output: list[int]) -> str:
    return TextCodec(str(MODEL)).decode(output)


@pytest.mark.parametrize("seed", range(5))
def test_random_tokens_give_json_of_the_schema(seed: int) -> None:
    """Tokens of random weights: nothing but the mask makes it so. No white space stands between the parts."""
    text = decode(follow(json_grammar(SCHEMA), seed))
    value = json.loads(text)
    assert set(value) == {"name", "tags"} and len(value["name"]) <= 8
    assert all(tag in ("a", 1) for tag in value["tags"])
    assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("seed", range(5))
def test_regular_expressions_choices_and_grammars_are_followed(seed: int) -> None:
    assert re.fullmatch(r"[0-9]{3}-[a-c]{1,5}", decode(follow(regex_grammar(r"[0-9]{3}-[a-c]{1,5}"), seed)))
    choices = ['say "yes"\n', "nö", "no\\"]
    assert decode(follow(choice_grammar(choices), seed)) in choices
    assert re.fullmatch("a[bc]*", decode(follow('start: "a" ("b" | "c")*', seed)))


def test_a_mask_depends_on_grammar_and_output_alone() -> None:
    """A process that died has no states; rows of equal outputs share one until they part."""
    grammar, kept = json_grammar(SCHEMA), make()
    outputs = [follow(grammar, seed) for seed in range(3)]
    for place in range(10):
        for output in outputs:
            fresh = make().allowed(grammar, output[:place], [EOS])
            for _ in range(2):
                assert (kept.allowed(grammar, output[:place], [EOS]) == fresh).all()


def test_states_that_were_dropped_are_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MAX_STATES", 2)
    monkeypatch.setattr(masks, "MAX_GRAMMARS", 1)
    grammars = [regex_grammar(f"[a-c]{{{count}}}") for count in (2, 3, 4)]
    kept = make()
    for output in ([], [66], [66, 67]):
        for grammar in grammars:
            fresh = make().allowed(grammar, output, [EOS])
            assert (kept.allowed(grammar, output, [EOS]) == fresh).all()


def test_only_a_whole_text_may_end() -> None:
    """And a complete one must; ids that end a request count, whatever the model's own are."""
    grammar, other = regex_grammar("ab?"), 7
    a, b = (TextCodec(str(MODEL)).encode(letter)[0] for letter in "ab")
    assert set(np.flatnonzero(make().allowed(grammar, [a], [EOS]))) >= {EOS, b}
    assert not make().allowed(grammar, [], [EOS])[EOS]
    assert np.flatnonzero(make().allowed(grammar, [a, b], [EOS])).tolist() == [EOS]
    assert np.flatnonzero(make().allowed(grammar, [a, b], [other])).tolist() == [other]
    assert not make().allowed(grammar, [a, b], []).any()


@pytest.mark.parametrize("vocabulary", [VOCABULARY - 300, VOCABULARY + 52])
def test_the_mask_has_the_width_of_the_logits(vocabulary: int) -> None:
    """Checkpoints pad their embedding; ids without a text are never allowed."""
    allowed = make(vocabulary).allowed(regex_grammar("(.|\n)*"), [], [EOS])
    assert allowed.shape == (vocabulary,) and allowed.any() and not allowed[VOCABULARY:].any()


def test_an_output_that_the_grammar_does_not_allow_is_an_error() -> None:
    """As when the first token is forced."""
    with pytest.raises(RequestError, match="does not allow the output so far"):
        make().allowed(regex_grammar("a"), [500, 501], [EOS])
    with pytest.raises(RequestError, match="cannot be followed"):
        make().allowed(regex_grammar("a("), [], [EOS])


def test_a_model_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        GrammarMasks(tmp_path, VOCABULARY, [EOS]).allowed(regex_grammar("a"), [], [EOS])


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match="llguidance") as refused:
        make().allowed("start: /a/", [], [EOS])
    assert "pip install 'expertflow-runtime[structured]'" in refused.value.remedy
