"""Bodies of /v1/completions: to requests, and completions to answers and streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest
from expertflow.ipc.messages import TokenLogprob
from expertflow.runtime.client.options import Request
from expertflow.runtime.openai.call import Call
from expertflow.runtime.openai.completion_call import CompletionCall
from expertflow.runtime.openai.endpoints import CHATS, COMPLETIONS, QUICK_BYTES, prepare_call, prepare_quick_call
from expertflow.runtime.openai.errors import ApiError
from expertflow.runtime.openai.logprobs import TokenNames
from expertflow.runtime.openai.model import ServedModel
from expertflow.tests.runtime.openai.models import BOS, CONTEXT, NAME, complete, events_of, read_sse


def call_of(model: ServedModel, /, **body: Any) -> CompletionCall:
    call = prepare_call(COMPLETIONS, msgspec.json.encode({"prompt": "ab", **body}), model)
    assert isinstance(call, CompletionCall)
    return call


def fault_of(model: ServedModel, /, **body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call_of(model, **body)
    return caught.value


def ids_of(call: Call) -> list[Any]:
    return [request.prompt for request in call.requests]


def test_prompts_come_in_four_shapes(model: ServedModel) -> None:
    a, b = model.codec.encode("ab"), model.codec.encode("c")
    assert ids_of(call_of(model)) == [a] and a[0] == BOS
    assert ids_of(call_of(model, prompt=["ab", "c"])) == [a, b]
    assert ids_of(call_of(model, prompt=[5, 6])) == [[5, 6]]
    assert ids_of(call_of(model, prompt=[[5], [6, 7]])) == [[5], [6, 7]]
    assert ids_of(call_of(model, add_special_tokens=False)) == [a[1:]]


def test_fields_become_options_of_requests(model: ServedModel) -> None:
    call = call_of(model, max_tokens=3, temperature=0.5, top_p=0.9, top_k=-1, seed=4, ignore_eos=True)
    assert call.requests == [
        Request(
            model.codec.encode("ab"), max_new_tokens=3, temperature=0.5, top_p=0.9, top_k=0, seed=4, eos_ids=[],
            wait_when_busy=False,
        )
    ]  # fmt: skip


def test_defaults_are_those_of_the_api(model: ServedModel) -> None:
    """Not those of the client, which is greedy."""
    (request,) = call_of(model).requests
    assert (request.max_new_tokens, request.temperature, request.seed) == (16, 1.0, None)


def test_choices_have_seeds_of_their_own_whatever_the_place_of_the_prompt(model: ServedModel) -> None:
    seeds = [request.seed for request in call_of(model, prompt=["a", "b"], n=3, seed=7).requests]
    assert seeds == [7, 8, 9, 7, 8, 9]
    assert [request.seed for request in call_of(model, n=2, seed=-1).requests] == [None, None]


@pytest.mark.parametrize(
    "body,param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [5, True]}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_wrong_bodies_are_refused_by_name(model: ServedModel, body: dict[str, Any], param: str | None) -> None:
    if body.get("prompt") == "":
        assert ids_of(call_of(model, **body)) == [[BOS]]
        return
    error = fault_of(model, **body)
    assert (error.status, error.kind, error.param) == (400, "invalid_request_error", param)
    assert param is not None and (param in error.message or "vocabulary" in error.message)


def test_neutral_values_of_refused_fields_pass(model: ServedModel) -> None:
    """Clients send them by default."""
    call = call_of(model, best_of=1, suffix="", use_beam_search=False, length_penalty=1.0, truncate_prompt_tokens=None)
    assert call.ignored == []


def test_fields_in_no_list_are_ignored_and_named(model: ServedModel) -> None:
    assert call_of(model, user="me", metadata={"a": 1}, brand_new=3, other=None).ignored == [
        "brand_new", "metadata", "user",
    ]  # fmt: skip


def test_an_unknown_model_is_not_found(model: ServedModel) -> None:
    error = fault_of(model, model="gpt-5")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert call_of(model, model="alias").model_name == "alias" and call_of(model).model_name == NAME


def test_a_prompt_that_does_not_fit_is_refused_early(model: ServedModel) -> None:
    """A text of millions of letters is not even tokenised."""
    for prompt in ([5] * (CONTEXT + 1), "a" * (CONTEXT + 1), "a" * 10**7):
        assert fault_of(model, prompt=prompt).code == "context_length_exceeded"


@pytest.mark.parametrize(
    "raw,code",
    [
        (b"", "invalid_json"),
        (b'{"prompt": "a"', "invalid_json"),
        (b"[1]", None),
        (b'{"prompt": "a", "logit_bias": ' + b"[" * 100 + b"]" * 100 + b"}", "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"prompt": "\xff"}', "invalid_json"),
    ],
)
def test_what_is_no_body_is_refused(model: ServedModel, raw: bytes, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        prepare_call(COMPLETIONS, raw, model)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_texts_of_errors_are_bounded(model: ServedModel) -> None:
    """A body must not come back as megabytes of explanation."""
    for body in ({"model": "x" * 10**6}, {"response_format": {"type": "y" * 10**6}}, {"stop": 5}):
        assert len(fault_of(model, **body).message) < 1100


def test_an_answer_has_a_choice_for_each_request(model: ServedModel) -> None:
    call = call_of(model, prompt=["ab", "c"], n=2, echo=True, return_token_ids=True)
    done = [complete(model, request.prompt, text) for request, text in zip(call.requests, "wxyz", strict=True)]
    answer = msgspec.to_builtins(call.answer(done))
    assert [choice["text"] for choice in answer["choices"]] == ["abw", "abx", "cy", "cz"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][2]["token_ids"] == done[2].token_ids
    assert answer["choices"][2]["prompt_token_ids"] == model.codec.encode("c")
    assert answer["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert answer["object"] == "text_completion" and answer["model"] == NAME


@pytest.mark.parametrize("reason,said", [("stop", "stop"), ("length", "length"), ("deadline", "length")])
def test_reasons_have_the_words_of_the_api(model: ServedModel, reason: str, said: str) -> None:
    call = call_of(model)
    answer = call.answer([complete(model, [5], "x", reason)])
    assert answer.choices[0].finish_reason == said


def test_a_stream_adds_up_to_the_answer(model: ServedModel) -> None:
    call = call_of(model, prompt=["ab", "c"], stream=True, echo=True, stream_options={"include_usage": True})
    done = [complete(model, request.prompt, text) for request, text in zip(call.requests, ("hé", "yes"), strict=True)]
    writer = call.writer()
    events = [event for index, each in enumerate(done) for event in events_of(each, model, index, size=2)]
    chunks = [chunk for event in events for chunk in writer.on_event(event)] + writer.end(done)
    *pieces, usage, end = read_sse(chunks)
    assert end == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert all(piece["usage"] is None for piece in pieces)
    for index, choice in enumerate(call.answer(done).choices):
        mine = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in mine).replace("\ufffd", "") in (choice.text, "abh")
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + ["length"]


def test_usage_is_left_out_of_a_stream_unless_asked_for(model: ServedModel) -> None:
    call = call_of(model, stream=True)
    done = complete(model, call.requests[0].prompt, "x")
    writer = call.writer()
    (piece, end) = read_sse([*writer.on_event(events_of(done, model)[0]), *writer.end([done])])
    assert "usage" not in piece and end == "[DONE]"


def test_usage_may_be_in_every_chunk(model: ServedModel) -> None:
    call = call_of(model, stream=True, stream_options={"continuous_usage_stats": True})
    done = complete(model, call.requests[0].prompt, "xyz")
    writer = call.writer()
    pieces = read_sse([chunk for event in events_of(done, model) for chunk in writer.on_event(event)])
    assert [piece["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 3]


def test_a_small_body_is_read_at_once_and_another_is_not(model: ServedModel) -> None:
    def quick(**body: Any) -> Any:
        return prepare_quick_call(COMPLETIONS, msgspec.json.encode({"prompt": "ab", **body}), model)

    raw = msgspec.json.encode({"prompt": "ab", "max_tokens": 3, "seed": 1, "n": 2})
    assert quick(max_tokens=3, seed=1, n=2).requests == prepare_call(COMPLETIONS, raw, model).requests
    assert quick(n=128, user="x" * 40) is None and quick(user="x" * QUICK_BYTES) is None
    assert quick(response_format={"type": "json_object"}) is None
    assert quick(structured_outputs={"choice": ["a"]}) is None
    assert prepare_quick_call(CHATS, b'{"messages": []}', model) is None


def test_log_probabilities_of_a_stream_are_those_of_the_answer(model: ServedModel) -> None:
    """Each token reads as behind the one before, the first behind the prompt; offsets go on from chunk to chunk."""
    call = call_of(model, stream=True, logprobs=1)
    call.token_names = cast(TokenNames, lambda before, token: f"{before}>{token};")
    done = complete(model, call.requests[0].prompt, "wxyz")
    listed = [TokenLogprob(token, -0.5 - place, 1, [(5, -0.1)]) for place, token in enumerate(done.token_ids)]
    writer, at = call.writer(), 0
    chunks: list[bytes] = []
    for event in events_of(done, model, size=2):
        chunks += writer.on_event(replace(event, logprobs=listed[at : at + len(event.token_ids)]))
        at += len(event.token_ids)
    pieces = [piece["choices"][0]["logprobs"] for piece in read_sse(chunks)]
    whole = msgspec.to_builtins(call.answer([replace(done, logprobs=listed)]))["choices"][0]["logprobs"]
    assert {name: [each for piece in pieces for each in piece[name]] for name in whole} == whole
    first, second = done.token_ids[:2]
    assert whole["tokens"][:2] == [f"{model.codec.encode('ab')[-1]}>{first};", f"{first}>{second};"]


def test_a_scoring_asks_for_the_prompts_log_probabilities(model: ServedModel) -> None:
    """An engine refuses an output of no tokens that asks for nothing."""
    for body, asked in (({"echo": True}, 0), ({"echo": True, "logprobs": 3}, 3), ({"prompt_logprobs": 2}, 2)):
        (request,) = call_of(model, max_tokens=0, **body).requests
        assert (request.max_new_tokens, request.prompt_logprobs) == (0, asked)


def test_reused_tokens_of_a_prompt_count_once(model: ServedModel) -> None:
    call = call_of(model, n=2)
    done = [complete(model, request.prompt, "x", cached_tokens=2) for request in call.requests]
    usage = msgspec.to_builtins(call.answer(done))["usage"]
    assert usage["prompt_tokens"] == 3 and usage["prompt_tokens_details"] == {"cached_tokens": 2}
