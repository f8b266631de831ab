"""Stop strings and samples of clients, against the real scheduler with a fake compute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expertflow import AsyncClient, Client, Completion, Event, Request
from expertflow.errors import RequestError
from expertflow.ipc.messages import Cancel, Finished, Sampling, Submit, Timings, Tokens
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.client.session import EngineSession
from expertflow.runtime.text.codec import TextCodec, TextStream
from expertflow.runtime.text.output_text import OutputText
from expertflow.runtime.text.stop_strings import StopRule
from expertflow.tests.runtime.client.test_text import save_byte_tokenizer
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

NEVER = Timings(queued_ns=0, first_token_ns=0, total_ns=0)
PROMPT = [1, 2]
COUNT = 40


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    save_byte_tokenizer(tmp_path)
    with FakeEngine(tmp_path, vocabulary=257) as engine:
        yield engine


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    return TextCodec(str(tmp_path))


def whole(codec: TextCodec) -> tuple[list[int], str]:
    """Return what the fake compute says to `PROMPT`: tokens of one letter each."""
    tokens = continuation(PROMPT, COUNT, Sampling(seed=3))
    return tokens, codec.decode(tokens)


def run(engine: FakeEngine, kind: str, **options: Any) -> tuple[list[Event], list[Completion]]:
    """Return all events and the completions of `PROMPT`, by either client."""
    options = {"eos_ids": [], "seed": 3} | options
    if kind == "blocking":
        with Client(engine.address) as client:
            batch = client.submit([PROMPT], COUNT, **options)
            return list(batch), batch.results()

    async def main() -> tuple[list[Event], list[Completion]]:
        async with AsyncClient(engine.address) as client:
            batch = await client.submit([PROMPT], COUNT, **options)
            return [event async for event in batch], await batch.results()

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("include", [False, True])
def test_an_output_ends_at_its_first_stop_string(
    engine: FakeEngine, codec: TextCodec, kind: str, include: bool
) -> None:
    """Text, tokens and events agree; nothing behind the string is shown."""
    tokens, text = whole(codec)
    stop = text[20:23]
    start = text.find(stop)
    events, (done,) = run(engine, kind, stop=["no such text", stop], include_stop=include, logprobs=None)
    assert done.text == text[: start + len(stop) if include else start]
    assert done.token_ids == tokens[: start + len(stop)]
    assert (done.finish_reason, done.stop_reason) == ("stop", stop)
    assert "".join(event.text_delta for event in events) == done.text
    assert [token for event in events for token in event.token_ids] == done.token_ids
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", stop)


def test_the_engine_is_not_kept_busy_behind_the_string(engine: FakeEngine, codec: TextCodec) -> None:
    """A stop that only the client sees must free the row."""
    _, text = whole(codec)
    with Client(engine.address) as client:
        client.generate([PROMPT], 60, eos_ids=[], seed=3, stop=[text[2:5]])
        assert engine.shell is not None
        deadline_s = time.monotonic() + 5
        while engine.shell._state.statistics().queue and time.monotonic() < deadline_s:
            time.sleep(0.01)
    ran = sum(len(step.token_ids) for compute in engine.computes for step in compute.ran)
    assert ran < 60


def test_a_minimum_of_tokens_comes_before_stop_strings(engine: FakeEngine, codec: TextCodec) -> None:
    tokens, text = whole(codec)
    later = next(place for place in range(15, COUNT) if text[place] in text[:10])
    _, (done,) = run(engine, "blocking", stop=[text[later]], min_new_tokens=12)
    first = text.find(text[later], 12)
    assert (done.text, done.token_ids) == (text[:first], tokens[: first + 1])


def test_ids_that_end_an_output_are_named(engine: FakeEngine, codec: TextCodec) -> None:
    tokens, _ = whole(codec)
    _, (done,) = run(engine, "blocking", stop_ids=[tokens[5]])
    assert (done.finish_reason, done.stop_reason) == ("stop", tokens[5])
    _, (done,) = run(engine, "blocking", eos_ids=[tokens[5]])
    assert (done.finish_reason, done.stop_reason) == ("stop", None)


def test_samples_of_a_prompt_have_seeds_of_their_own(engine: FakeEngine) -> None:
    """Flat, prompt by prompt; a prompt that is wrong fails with all its samples and moves no other."""
    prompts = [[1], [999], Request([2], n=3), Request([3], n=2, seed=50)]
    with Client(engine.address) as client:
        batch = client.submit(prompts, 5, eos_ids=[], n=2, seed=7, temperature=1.0)
        results = batch.results(return_errors=True)
    seeds = {0: ([1], 7), 1: ([1], 8), 4: ([2], 11), 5: ([2], 12), 6: ([2], 13), 7: ([3], 50), 8: ([3], 51)}
    assert len(batch) == len(results) == 9
    for place, (prompt, seed) in seeds.items():
        done = results[place]
        assert isinstance(done, Completion)
        assert (done.prompt_ids, done.token_ids) == (prompt, continuation(prompt, 5, Sampling(seed=seed)))
    assert all(isinstance(results[place], RequestError) for place in (2, 3))


def test_special_tokens_are_kept_if_asked(engine: FakeEngine, codec: TextCodec) -> None:
    """Markers of tool calls are special tokens of some models; the token that ends the output is left out."""
    ids = [1, 256, 2, 256]
    kept = TextStream(codec, special_tokens=True, end_ids=[256])
    assert "".join([kept.advance(ids, 2), kept.advance(ids, 3), kept.finish(ids)]) == "".join(
        [codec.decode([1]), "<s>", codec.decode([2])]
    )
    assert TextStream(codec).whole(ids) == codec.decode([1, 2])


@pytest.mark.parametrize(
    "options",
    [{"stop": "text"}, {"stop": [""]}, {"stop": [3]}, {"stop": list(map(str, range(17)))}, {"stop": ["x" * 1001]},
     {"n": 0}, {"n": 129}, {"include_stop": 1}],
)  # fmt: skip
def test_wrong_options_are_refused(engine: FakeEngine, options: dict[str, Any]) -> None:
    with Client(engine.address) as client, pytest.raises(RequestError) as refused:
        client.submit([PROMPT], **options)
    assert refused.value.where == next(iter(options))


# The core


def make_request(codec: TextCodec, *stops: str) -> ClientRequest:
    submit = Submit(request_id="a", prompt_ids=[1], max_new_tokens=9)
    return ClientRequest(0, submit, BatchUpdates(), text=OutputText(TextStream(codec), StopRule(stops)))


def under_way(request: ClientRequest) -> EngineSession:
    session = EngineSession()
    session.submit(request, 0)
    session.due(0)
    return session


def test_a_request_is_cancelled_once_and_ends_as_stopped(codec: TextCodec, engine: FakeEngine) -> None:
    """Tokens that come meanwhile are not of the output."""
    request = make_request(codec, "BC")
    session = under_way(request)
    a, b, c = codec.encode("ABC")[1:]
    session.receive(Tokens("a", 0, [a, b]), 1)
    assert session.due(1) == [] and not request.meets_stop
    session.receive(Tokens("a", 2, [c, a]), 2)
    assert session.due(2) == [Cancel("a")] and request.tokens == [a, b, c] and not request.ended
    session.receive(Tokens("a", 4, [b]), 3)
    session.receive(Finished(request_id="a", token_ids=[a, b, c, a, b], finish_reason="cancelled", timings=NEVER), 4)
    assert (request.tokens, request.finish_reason, request.stop_reason) == ([a, b, c], "stop", "BC")
    assert session.due(5) == [] and session.strays == 0


@pytest.mark.parametrize("end", ["reconnect", "failure", "finished"])
def test_a_stop_string_that_was_seen_is_the_end_whatever_dies(codec: TextCodec, engine: FakeEngine, end: str) -> None:
    request = make_request(codec, "B")
    session = under_way(request)
    a, b = codec.encode("AB")[1:]
    if end == "finished":
        session.receive(Finished(request_id="a", token_ids=[a, b, a], finish_reason="length", timings=NEVER), 1)
    else:
        session.receive(Tokens("a", 0, [a, b, a]), 1)
        session.on_reconnect() if end == "reconnect" else session.fail_all(RequestError("it died"))
    assert (request.tokens, request.finish_reason, request.error) == ([a, b], "stop", None)
