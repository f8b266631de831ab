"""The server over real sockets: answers, streams, paths and states."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import Any

import pytest
from expertflow import __version__
from expertflow.configs.schema import Config
from expertflow.ipc.messages import Sampling
from expertflow.runtime.http.spec import Limits, Loading, Serving
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.conftest import QUEUE
from expertflow.tests.runtime.http.local_server import Answer, LocalServer, events
from expertflow.tests.runtime.openai.models import CONTEXT, VOCABULARY, save_model
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

LONG = {"max_tokens": 40, "ignore_eos": True, "seed": 3}
HI = [{"role": "user", "content": "Hi"}]


def expected(prompt: list[int], count: int, seed: int) -> list[int]:
    return continuation(prompt, count, Sampling(seed=seed))


def is_idle(engine: FakeEngine) -> bool:
    if engine.shell is None:
        return False
    statistics = engine.shell._state.statistics()
    return statistics.accepted == statistics.done + statistics.abandoned


def test_a_completion_is_the_engines(server: LocalServer) -> None:
    answer = server.completion(ignore_eos=True, seed=3, n=2, return_token_ids=True)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    choices = answer.json["choices"]
    assert [choice["token_ids"] for choice in choices] == [expected([5, 6], 4, 3), expected([5, 6], 4, 4)]
    assert answer.json["usage"]["total_tokens"] == 10 and answer.json["model"] == "tiny"


def test_a_stream_gives_the_same_tokens(server: LocalServer) -> None:
    with server.stream(ignore_eos=True, seed=3, return_token_ids=True) as response:
        assert response.status == 200 and response.headers["content-type"].startswith("text/event-stream")
        *pieces, end = events(response)
    tokens = [token for piece in pieces for token in piece["choices"][0]["token_ids"]]
    assert end == "[DONE]" and tokens == expected([5, 6], 4, 3)


def test_a_chat_and_its_batch_are_answered(server: LocalServer) -> None:
    chat = server.post("/v1/chat/completions", {"messages": HI, "ignore_eos": True, "seed": 1})
    assert chat.status == 200 and chat.json["usage"]["completion_tokens"] == 20
    batch = server.post("/v1/chat/completions/batch", {"messages": [HI, HI], "ignore_eos": True, "seed": 1})
    texts = [choice["message"]["content"] for choice in batch.json["choices"]]
    assert texts == [chat.json["choices"][0]["message"]["content"]] * 2


def test_a_response_is_answered(server: LocalServer) -> None:
    answer = server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 3, "seed": 1})
    assert answer.status == 200 and answer.json["object"] == "response"
    assert answer.json["output"][0]["type"] == "message" and answer.json["store"] is False


def test_the_model_is_listed(server: LocalServer) -> None:
    listed = server.get("/v1/models").json
    assert [card["id"] for card in listed["data"]] == ["tiny", "alias"] and listed["object"] == "list"
    assert server.get("/v1/models/alias").json["max_model_len"] == 64
    answer = server.get("/v1/models/some/other")
    assert answer.status == 404 and answer.error["code"] == "model_not_found"


def test_texts_become_ids_and_back(server: LocalServer) -> None:
    answer = server.post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json
    assert answer["count"] == 4 and answer["tokens"][0] == 256 and answer["token_strs"][1] == "h"
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json == {"prompt": "<s>hé"}
    bare = server.post("/tokenize", {"prompt": "hé", "add_special_tokens": False}).json
    assert bare["tokens"] == answer["tokens"][1:]
    chat = server.post("/tokenize", {"messages": HI}).json
    assert server.post("/detokenize", {"tokens": chat["tokens"]}).json["prompt"] == "user: Hi\nassistant: "
    for body in ({}, {"prompt": "a", "messages": HI}, {"prompt": 5}):
        assert server.post("/tokenize", body).status == 400
    assert server.post("/detokenize", {"tokens": [999]}).error["param"] == "tokens"
    info = server.get("/tokenizer_info").json
    assert info["bos_token"] == "<s>" and "role" in info["chat_template"]


def test_watchers_see_states_and_counts(server: LocalServer) -> None:
    server.completion(ignore_eos=True)  # drawn at random, so an end might come early
    assert server.get("/health").json == {"status": "ok"}
    assert server.get("/ready").json == {"status": "ready", "model": "tiny"}
    assert server.get("/version").json == {"version": __version__}
    assert server.get("/openapi.json").json["openapi"].startswith("3.1")
    text = server.get("/metrics").body.decode()
    assert 'expertflow_http_replies_total{path="/v1/completions",status="200"} 1.0' in text
    assert "expertflow_http_generation_tokens_total 4.0" in text and "expertflow_http_requests_open 0.0" in text


def test_unknown_paths_and_methods_are_refused(server: LocalServer) -> None:
    answer = server.get("/v2/chat")
    assert answer.status == 404 and answer.error["code"] == "unknown_url"
    answer = server.get("/v1/completions")
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert server.post("/health", {}).status == 405
    assert server.request("HEAD", "/health", None, {}).status == 200


def test_ignored_fields_are_named_in_a_header(server: LocalServer) -> None:
    assert server.completion(user="me", brand_new=1).headers["x-expertflow-ignored"] == "brand_new, user"
    assert "x-expertflow-ignored" not in server.completion().headers


def test_no_name_of_a_field_breaks_the_header(server: LocalServer) -> None:
    """A line end in one would forge headers, a letter beyond Latin-1 cut the reply off; found by schemathesis."""
    names = {"a\r\nset-cookie: b": 1, "ž": 1, "": 1, "\ud83d\ude00": 1, "n" * 10_000: 1}
    answer = server.completion(**names)
    assert answer.status == 200 and "set-cookie" not in answer.headers
    assert "a%0D%0Aset-cookie%3A%20b" in answer.headers["x-expertflow-ignored"]
    many = server.completion(**{f"field-{number}": 1 for number in range(5000)})
    assert many.status == 200 and many.headers["x-expertflow-ignored"].endswith(", 4980 more")


def test_while_the_model_loads_the_server_says_how_far(engine: FakeEngine) -> None:
    with LocalServer(None) as server:
        server.tell(Loading("compute: reading weights", 1, 4))
        assert server.get("/health").status == 200
        ready = server.get("/ready")
        assert ready.status == 503 and "retry-after" in ready.headers
        assert ready.json == {"status": "loading", "phase": "compute: reading weights", "percent": 25.0}
        answer = server.completion()
        assert answer.status == 503 and answer.error["code"] == "loading" and "25 %" in answer.error["message"]
        assert server.get("/v1/models").status == 503 and server.get("/metrics").status == 200
        server.tell(Serving(engine.address))
        assert server.get("/ready").status == 200 and server.completion().status == 200


def test_an_engine_that_is_gone_is_said_to_be(tmp_path: Any) -> None:
    with LocalServer(str(tmp_path / "nowhere")) as server:
        assert server.get("/health").status == 503 and server.get("/ready").status == 503
        answer = server.completion()
        assert answer.status == 503 and answer.error["code"] == "engine"


def test_a_full_queue_is_429_with_the_time_to_wait(server: LocalServer, engine: FakeEngine) -> None:
    engine.paused.set()
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(server.completion(n=3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.link.counters.open_requests == QUEUE)
    for refused in (server.completion(), server.completion(stream=True)):
        assert refused.status == 429 and refused.error["code"] == "busy"
        assert refused.error["type"] == "rate_limit_error" and int(refused.headers["retry-after"]) >= 1
    assert server.completion(n=QUEUE + 1).status == 400
    engine.paused.clear()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200, 200] and server.completion().status == 200


def test_the_time_to_wait_is_that_of_a_row(server: LocalServer) -> None:
    """About when the next of four rows is free; a minute at most, since requests may end early."""
    for mean_s, told in ((0.0, 1), (25.0, 7), (1e6, 60)):
        server.link._seconds = mean_s
        assert server.link.retry_s == told


def test_keys_take_turns(tmp_path: Any) -> None:
    """All of them share the server's connection to the engine; a request waits for no other key's many."""
    config = Config(kv_memory="100KB", batch_size=1, queue_limit=40)
    with FakeEngine(save_model(tmp_path), config, vocabulary=VOCABULARY) as engine:
        for keys, headers in ((["a", "b"], ("Bearer a", "Bearer b")), ([], ("Bearer any", ""))):
            with LocalServer(engine.address, keys=keys) as server:
                assert answers_in_order(server, engine, headers) == [1, 0]


def answers_in_order(server: LocalServer, engine: FakeEngine, headers: tuple[str, str]) -> list[int]:
    """Send twenty requests with the first header, then one with the second; return in which order they are answered."""
    ended: list[int] = []

    def send(place: int, count: int) -> None:
        body = {"prompt": [5], "max_tokens": 2, "n": count}
        assert server.post("/v1/completions", body, authorization=headers[place]).status == 200
        ended.append(place)

    engine.paused.set()
    threads = [threading.Thread(target=send, args=(place, count)) for place, count in ((0, 20), (1, 1))]
    threads[0].start()
    wait_until(lambda: server.link.counters.open_requests == 20)
    threads[1].start()
    wait_until(lambda: server.link.counters.open_requests == 21)
    engine.paused.clear()
    for thread in threads:
        thread.join()
    return ended


def test_no_key_fills_the_queue_alone(tmp_path: Any) -> None:
    """Else a flood of one keeps all others out."""
    config = Config(kv_memory="100KB", batch_size=1, queue_limit=16)
    engine = FakeEngine(save_model(tmp_path), config, vocabulary=VOCABULARY)
    flood = {"prompt": [5], "max_tokens": 2, "n": 14}
    with engine, LocalServer(engine.address, keys=["a", "b"]) as server:
        answers: list[Answer] = []
        send = partial(server.post, "/v1/completions")
        thread = threading.Thread(target=lambda: answers.append(send(flood, authorization="Bearer a")))
        engine.paused.set()
        thread.start()
        wait_until(lambda: server.link.counters.open_requests == 14)
        refused = send({"prompt": [5]}, authorization="Bearer a")
        assert refused.status == 429 and "one client" in refused.error["message"]
        engine.paused.clear()
        assert send({"prompt": [5]}, authorization="Bearer b").status == 200
        thread.join()
        assert [answer.status for answer in answers] == [200]
        assert send(flood, authorization="Bearer a").status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(server: LocalServer, engine: FakeEngine, stream: bool) -> None:
    """At once, and whether or not it reads: rows of nobody would keep others waiting."""
    engine.paused.set()
    body = json.dumps({"prompt": [5], "stream": stream, **LONG}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with pytest.raises(TimeoutError):
        server.raw(head + b"content-length: %d\r\n\r\n" % len(body) + body, timeout_s=0.3)
    wait_until(lambda: server.link.counters.open_requests == 0)
    engine.paused.clear()
    wait_until(lambda: is_idle(engine))
    assert engine.computes[-1].ran == [] or len(engine.computes[-1].ran) < 5
    assert server.link.counters.replies["/v1/completions", 499] == 1


def test_a_hang_up_in_the_middle_of_a_stream_frees_its_row(server: LocalServer, engine: FakeEngine) -> None:
    with server.stream(prompt=[5], **LONG) as response:
        next(events(response))
        engine.paused.set()
    wait_until(lambda: server.link.counters.open_requests == 0)
    assert server.link.counters.open_streams == 0
    engine.paused.clear()
    wait_until(lambda: is_idle(engine))


def test_a_silent_stream_gets_pings(engine: FakeEngine) -> None:
    with LocalServer(engine.address, limits=Limits(ping_s=0.05, grace_s=0.0)) as server:
        engine.paused.set()
        with server.stream() as response:
            seen = events(response)
            assert [next(seen), next(seen)] == [b": ping\n"] * 2
            engine.paused.clear()
            assert list(seen)[-1] == "[DONE]"


def test_a_stream_whose_tokens_show_nothing_gets_pings_too(engine: FakeEngine) -> None:
    """Echoed log probabilities go out at the end, calls of tools when they are whole: proxies cut silent streams."""
    with LocalServer(engine.address, limits=Limits(ping_s=0.05, grace_s=0.0)) as server:
        engine.paused.set()
        with server.stream(prompt=[5], max_tokens=59, echo=True, logprobs=0, ignore_eos=True) as response:
            seen = events(response)
            assert next(seen) == b": ping\n"
            pulse = threading.Thread(target=pulse_engine, args=(engine,))
            pulse.start()
            pings = list(seen).count(b": ping\n")
            pulse.join()
        assert pings >= 5


def pulse_engine(engine: FakeEngine) -> None:
    """Let the engine make a few steps every 20 ms, so that no time of silence passes without a token."""
    ran = engine.computes[-1].ran
    while len(ran) < 55:
        before = len(ran)
        engine.paused.clear()
        while len(ran) == before:
            time.sleep(0.0005)
        engine.paused.set()
        time.sleep(0.02)
    engine.paused.clear()


def test_streams_pause_and_go_on_when_stages_die(server: LocalServer, engine: FakeEngine) -> None:
    """With the same tokens as without a death."""
    streams: list[list[int]] = [[] for _ in range(6)]

    def read(index: int) -> None:
        with server.stream(**LONG | {"prompt": [5, index], "return_token_ids": True}) as response:
            for event in events(response):
                if event != "[DONE]":
                    streams[index] += event["choices"][0]["token_ids"]

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(streams))]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(streams))
    engine.kill_compute()
    engine.kill_scheduler()
    engine.start_scheduler()
    for thread in threads:
        thread.join()
    assert streams == [expected([5, index], 40, 3) for index in range(len(streams))]


def test_an_error_after_the_first_byte_is_the_last_event(server: LocalServer, engine: FakeEngine) -> None:
    with server.stream(**LONG) as response:
        seen = events(response)
        next(seen)
        engine.paused.set()
        threading.Thread(target=server.stop).start()
        last = list(seen)[-1]
    assert last["error"]["code"] == "engine" and "stopped" in last["error"]["message"]
    engine.paused.clear()


def test_a_server_that_ends_answers_what_runs(server: LocalServer, engine: FakeEngine) -> None:
    engine.paused.set()
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(server.completion()))
    thread.start()
    wait_until(lambda: server.link.counters.open_requests == 1)
    server.stop()
    thread.join()
    assert answers[0].status == 503 and answers[0].error["code"] == "engine"
    engine.paused.clear()


def test_a_prompt_must_fit(server: LocalServer) -> None:
    answer = server.completion(prompt="a" * CONTEXT)
    assert answer.status == 400 and answer.error["code"] == "context_length_exceeded"
