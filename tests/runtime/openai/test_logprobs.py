"""Log probabilities in both forms."""

from __future__ import annotations

import math

from expertflow.ipc.messages import TokenLogprob
from expertflow.runtime.openai.logprobs import LOWEST, TokenNames, chat_logprobs, completion_logprobs
from expertflow.runtime.openai.model import ServedModel


def entries(model: ServedModel, text: str) -> list[TokenLogprob]:
    """Each letter with two likeliest tokens, itself and `z`."""
    z = model.codec.encode("z", False)[0]
    ids = model.codec.encode(text, False)
    return [TokenLogprob(token, -0.5 - i, 1, [(token, -0.5 - i), (z, -9.0)]) for i, token in enumerate(ids)]


def test_lists_are_parallel_and_offsets_lead_into_the_text(model: ServedModel) -> None:
    listed = entries(model, "abc")
    ids = [entry.token_id for entry in listed]
    made = completion_logprobs(ids, [None, *listed[1:]], TokenNames(model.codec), top=2, offset=10)
    assert made.tokens == ["a", "b", "c"] and made.text_offset == [10, 11, 12]
    assert made.token_logprobs == [None, -1.5, -2.5]
    assert made.top_logprobs == [None, {"b": -1.5, "z": -9.0}, {"c": -2.5, "z": -9.0}]


def test_the_chosen_token_is_among_the_likeliest(model: ServedModel) -> None:
    """lm-eval compares it with them; of two tokens with the same text the likelier counts."""
    listed = entries(model, "a")
    names = TokenNames(model.codec)
    assert completion_logprobs([listed[0].token_id], listed, names, top=0).top_logprobs == [{"a": -0.5}]
    twice = TokenLogprob(5, -1.0, 1, [(5, -1.0), (6, -2.0)])
    assert completion_logprobs([5], [twice], lambda before, token: "same", top=2).top_logprobs == [{"same": -1.0}]


def test_a_token_reads_as_behind_the_one_before(model: ServedModel) -> None:
    e = model.codec.encode("é", False)
    names = TokenNames(model.codec)
    assert names(None, e[0]) == "\ufffd" and names(256, model.codec.encode("a", False)[0]) == "a"
    assert names(None, 256) == "<s>" and TokenNames(model.codec, as_ids=True)(None, 256) == "token_id:256"


def test_a_chat_lists_objects(model: ServedModel) -> None:
    listed = [*entries(model, "a"), TokenLogprob(5, -math.inf, 7, [])]
    made = chat_logprobs(listed, TokenNames(model.codec), top=1)
    assert (made.content[0].token, made.content[0].bytes, made.content[0].logprob) == ("a", [97], -0.5)
    assert [each.token for each in made.content[0].top_logprobs] == ["a"] and made.content[1].logprob == LOWEST
