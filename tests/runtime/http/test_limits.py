"""What a client may take: keys, sizes, times, connections. Each fault has one status."""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from expertflow.runtime.http.spec import Limits
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.local_server import LocalServer
from expertflow.tests.scheduler.fake_engine import FakeEngine

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"prompt": [5], "max_tokens": 1}).encode()
LARGE = {"prompt": [5], "n": 6, "max_tokens": 60, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
LARGE_STREAM = LARGE | {"stream": True, "stream_options": {"continuous_usage_stats": True}}


@pytest.fixture
def strict(engine: FakeEngine) -> Iterator[LocalServer]:
    limits = Limits(
        body_bytes=1000, header_bytes=2000, header_timeout_s=0.3, body_timeout_s=0.3, connections=3, grace_s=0.0
    )
    with LocalServer(engine.address, limits=limits) as server:
        yield server


def test_one_of_the_keys_is_needed(engine: FakeEngine) -> None:
    with LocalServer(engine.address, keys=["first", "second"]) as server:
        for header in ("Bearer first", "bearer second"):
            assert server.get("/v1/models", authorization=header).status == 200
        for header in ("", "Bearer", "Bearer third", "Bearer firstsecond", "Basic first", "first", "Bearer f\xe9"):
            answer = server.get("/v1/models", authorization=header)
            assert answer.status == 401 and answer.error["code"] == "invalid_api_key", header
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.completion().status == 401 and server.post("/tokenize", {"prompt": "a"}).status == 401
        status, answer = server.raw(
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer first\r\nauthorization: Bearer first\r\n\r\n"
        )
        assert status == 401, answer
        for path in ("/health", "/ready", "/version", "/metrics"):
            assert server.get(path).status == 200
        assert "security" in server.get("/openapi.json").json


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_other_content_types_are_refused(server: LocalServer, kind: str) -> None:
    """`curl -d` without a header sends a form; pages of other sites can send text."""
    answer = server.request("POST", "/v1/completions", BODY, {"content-type": kind})
    assert answer.status == 415 and "application/json" in answer.error["message"]
    right = {"content-type": "Application/JSON; charset=utf-8"}
    assert server.request("POST", "/v1/completions", BODY, right).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"prompt": }', b"\xff\xfe", b"null", b'"prompt"'])
def test_what_is_no_json_object_is_400(server: LocalServer, body: bytes) -> None:
    answer = server.post("/v1/completions", body)
    assert answer.status == 400 and answer.error["type"] == "invalid_request_error"


def test_ten_megabytes_of_json_are_read_and_refused_quickly(server: LocalServer) -> None:
    begun = time.monotonic()
    for body in ({"prompt": "a" * 10**7}, {"prompt": [5] * 3 * 10**6}, {"prompt": "a", "tools": ["a"] * 10**6}):
        answer = server.post("/v1/completions", body)
        assert answer.status in (200, 400) and len(answer.body) < 3000
    assert time.monotonic() - begun < 60


def test_deep_json_is_400(server: LocalServer) -> None:
    for depth in (65, 10**4, 10**6):
        deep = b'{"prompt": [5], "x": ' + b"[" * depth + b"]" * depth + b"}"
        answer = server.post("/v1/completions", deep)
        assert answer.status == 400 and answer.error["code"] == "too_deep"


def test_a_name_that_is_given_twice_counts_as_its_last(server: LocalServer) -> None:
    answer = server.post("/v1/completions", b'{"max_tokens": 3, "prompt": [5], "max_tokens": 2, "ignore_eos": true}')
    assert answer.json["usage"]["completion_tokens"] == 2


def test_a_large_body_is_413(strict: LocalServer) -> None:
    assert strict.post("/v1/completions", {"prompt": "a" * 2000}).status == 413
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [b'{"prompt": "' + b"a" * 600, b"a" * 600])
    status, answer = strict.raw(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert status == 413 and b"body_too_large" in answer


def test_half_a_body_is_408_or_nothing(strict: LocalServer) -> None:
    """408 if the client stays, nothing if it goes; no request runs."""
    status, answer = strict.raw(HEAD + b"content-length: 100\r\n\r\n" + BODY)
    assert status == 408 and b"timeout" in answer
    with socket.create_connection(("127.0.0.1", strict.port)) as opened:
        opened.sendall(HEAD + b"content-length: 100\r\n\r\n" + BODY)
    assert strict.completion().status == 200


def test_slow_headers_are_408(strict: LocalServer) -> None:
    begun = time.monotonic()
    for sent in (b"", b"GET /health HTTP/1.1\r\nhost: x\r\n"):
        status, _ = strict.raw(sent)
        assert status == 408
    assert time.monotonic() - begun < 5
    with socket.create_connection(("127.0.0.1", strict.port)) as opened:
        opened.settimeout(5)
        for letter in b"GET /health HTTP/1.1\r\nhost: x\r\n" * 3:
            time.sleep(0.02)
            try:
                opened.sendall(bytes([letter]))
            except OSError:
                break
        else:
            pytest.fail("a client that sends a letter now and then keeps its connection")


def test_slow_headers_of_a_later_request_are_408(strict: LocalServer) -> None:
    """A connection that was used once is no reason to wait for ever."""
    whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    _, answer = strict.raw(whole + whole[:-2])
    assert answer.count(b"HTTP/1.1 200 OK") == 1 and answer.count(b"HTTP/1.1 408") == 1


def test_large_headers_are_431(strict: LocalServer) -> None:
    for size in (3000, 500_000):
        status, _ = strict.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * size + b"\r\n\r\n")
        assert status == 431
    status, _ = strict.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 3000)
    assert status == 431
    assert strict.raw(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 431


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_http_is_400(server: LocalServer, data: bytes) -> None:
    status, answer = server.raw(data)
    assert status == 400 and b'"error"' in answer


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * 2000 + b"\r\n", b"a" * 4000], ids=["many", "one"])
def test_trailers_without_an_end_are_cut_off(engine: FakeEngine, trailer: bytes) -> None:
    """They come after the headers, and count as no body, so neither limit sees them."""
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    with (
        LocalServer(engine.address, limits=Limits(body_timeout_s=600, grace_s=0.0)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as opened,
    ):
        opened.settimeout(60)
        opened.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk)
        with pytest.raises(ConnectionError):
            for _ in range(20_000):
                opened.sendall(trailer)
        assert server.completion().status == 200


def test_short_trailers_and_chunks_of_a_byte_are_fine(server: LocalServer) -> None:
    chunks = b"".join(b"1;ext=1\r\n%c\r\n" % byte for byte in BODY)
    end = b"0\r\nx-checksum: 1\r\n\r\n"
    status, _ = server.raw(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + end)
    assert status == 200


def test_every_key_is_compared_whichever_is_right(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time of an answer tells nothing of the keys, nor how much of one was right."""
    compared: list[bool] = []

    def compare(one: bytes, other: bytes) -> bool:
        assert len(one) == len(other) == 32, "digests, so that lengths tell nothing"
        compared.append(hmac_compare(one, other))
        return compared[-1]

    hmac_compare = hmac.compare_digest
    with LocalServer(engine.address, keys=["first", "second", "third"]) as server:
        monkeypatch.setattr("expertflow.runtime.http.app.hmac.compare_digest", compare)
        for key, status in (("first", 200), ("third", 200), ("thirx", 401), ("", 401)):
            compared.clear()
            assert server.get("/v1/models", authorization=f"Bearer {key}").status == status
            assert len(compared) == 3 and sum(compared) == (status == 200)


def test_connections_are_limited(strict: LocalServer) -> None:
    opened = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(3)]
    try:
        time.sleep(0.1)
        status, answer = strict.raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status == 503 and b"too_many_connections" in answer
    finally:
        for each in opened:
            each.close()
    deadline = time.monotonic() + 5
    while strict.get("/health").status != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert strict.get("/health").status == 200


def test_requests_follow_each_other_on_a_connection(server: LocalServer) -> None:
    """Also when they are sent before the answers."""
    one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    _, answer = server.raw(one + HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 3


def test_a_client_that_reads_nothing_is_let_go(engine: FakeEngine) -> None:
    """Its stream would wait for ever, with a row of the engine and all that the row has generated."""
    limits = Limits(write_timeout_s=0.2, grace_s=0.0)
    with LocalServer(engine.address, limits=limits) as server, _unread(server, LARGE_STREAM):
        wait_until(lambda: server.link.counters.open_streams == 1)
        wait_until(lambda: server.link.counters.open_streams == 0)
        assert server.completion().status == 200


def test_a_closed_connection_does_not_wait_for_its_reader(engine: FakeEngine) -> None:
    """What was answered whole, or refused, may lie unread too."""
    limits = Limits(write_timeout_s=0.2, idle_timeout_s=0, connections=2, grace_s=0.0)
    with LocalServer(engine.address, limits=limits) as server, _unread(server, LARGE):
        wait_until(lambda: server.link.counters.replies["/v1/completions", 200] == 1)
        with _unread(server, LARGE):
            wait_until(lambda: server.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")[0] == 200)


def test_bodies_that_wait_to_be_read_are_bounded(engine: FakeEngine) -> None:
    """Else a few hundred large bodies fill the memory of the machine."""
    limits = Limits(bodies_bytes=1_000_000, body_bytes=1_000_000, grace_s=0.0)
    head = HEAD + b"content-length: 900000\r\n\r\n"
    with LocalServer(engine.address, limits=limits) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as opened:
            opened.sendall(head + b" " * 800_000)
            wait_until(lambda: server.link.room.left_bytes < 300_000)
            status, answer = server.raw(head + b" " * 899_999)
            assert status == 429 and b'"busy"' in answer and b"retry-after" in answer
            assert server.completion(prompt=[5] * 10).status == 200, "a small body always has room"
        wait_until(lambda: server.link.room.left_bytes == 1_000_000)
        assert server.post("/v1/completions", b" " * 800_000 + BODY).status == 200
        assert server.link.room.left_bytes == 1_000_000


@contextmanager
def _unread(server: LocalServer, body: dict[str, Any]) -> Iterator[None]:
    """A connection that sends a body and reads nothing; the server's end of it buffers little."""
    raw = json.dumps(body).encode()
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        opened.connect(("127.0.0.1", server.port))
        opened.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(raw) + raw)
        yield
