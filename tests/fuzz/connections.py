"""Targets: what comes over connections beyond single messages: heads of HTTP, conversations, keys, answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from expertflow.ipc.messages import Accepted, ErrorFacts, Finished, Refused, RoutedExperts, Submit, Timings, Tokens
from expertflow.ipc.messages.to_client import TO_CLIENT
from expertflow.ipc.messages.to_scheduler import FROM_CLIENT
from expertflow.ipc.transport.addresses import CLIENTS, MONITOR
from expertflow.ipc.transport.codec import Unreadable, decode
from expertflow.runtime.client.completions import read_routes
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.client.session import EngineSession
from expertflow.runtime.http.__main__ import configure
from expertflow.runtime.http.app import Application
from expertflow.runtime.http.counters import Counters
from expertflow.runtime.http.engine_link import EngineLink
from expertflow.runtime.http.spec import FrontSpec, Limits
from expertflow.runtime.remote.keys import read_public_key
from expertflow.runtime.remote.remote_clients import Answered, Arrived, Forward, RemoteClients, Reply, Tick, Undelivered
from expertflow.runtime.text.answers.formats import TOOL_FORMATS, AnswerFormat
from expertflow.runtime.text.answers.parts import AnswerParts
from expertflow.tests.fuzz.target import ClosingRead, Read, Target, in_file
from uvicorn.server import ServerState

HEADS = (
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\ncontent-type: application/json\r\n"
    b"content-length: 15\r\n\r\n{\"prompt\": \"x\"}",
    b"POST /tokenize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n0\r\nx-trailer: y\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nconnection: keep-alive\r\n\r\nHEAD /v1/models/a%20b?q=1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nexpect: 100-continue\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n" + b"x-filler: 0123456789012345678901234567890123456789\r\n" * 30 + b"\r\n",
)
HEADER_BYTES = 1024
PIECES = (1, 7, 50, 4096)
KEY = b'metadata\ncurve\n    public-key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"\n'
ANSWERS = (
    'Hi <tool_call>\n{"name": "f", "arguments": {"a": [1, "x"]}}\n</tool_call>', '[TOOL_CALLS][{"name": "f"}]',
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>",
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
    "<think>so</think>text",
)  # fmt: skip
MESSAGES_A_CORE = 60


def connection_targets() -> list[Target]:
    """Return a target for each kind of connection."""
    return [
        Target("HTTP head", _prepare_http, lambda: [b"\3" + head for head in HEADS], ()),
        Target("remote clients", lambda folder: HostileRemoteClient(), _remote_seeds, (), "packed", 1),
        Target("lying scheduler", lambda folder: LyingScheduler(), _answer_seeds, form="packed"),
        Target("key file", in_file("a.key", read_public_key), lambda: [KEY]),
        Target("answer of a model", lambda folder: _read_answer, _model_seeds, ()),
    ]


# HTTP


class FakeTransport(asyncio.Transport):
    """Takes what a server writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written, self.closing = bytearray(), False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


def _prepare_http(folder: Path) -> Read:
    """Return a reader of inputs whose first byte chooses the size of the pieces in which the rest comes."""
    loop = asyncio.new_event_loop()
    limits = Limits(header_bytes=HEADER_BYTES, body_bytes=2000, connections=10)
    spec = FrontSpec(fd=-1, names=["tiny"], keys=["key"], default_max_tokens=5, limits=limits)
    link = EngineLink(spec, Counters())
    config = configure(spec, Application(link))
    config.load()
    return ClosingRead(lambda data: loop.run_until_complete(_talk(config, data)), loop.close)


async def _talk(config: Any, data: bytes) -> None:
    """Send the input over one connection. Raises ValueError for an answer that is none, or an internal error."""
    loop, transport, state = asyncio.get_running_loop(), FakeTransport(), ServerState()
    protocol = config.http_protocol_class(config, state, {}, loop)
    protocol.connection_made(transport)
    size = PIECES[data[0] % len(PIECES)] if data else 1
    for begin in range(1, len(data), size):
        if transport.closing:
            break
        protocol.data_received(data[begin : begin + size])
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    for task in asyncio.all_tasks(loop) - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    if state.connections or (transport.written and not transport.written.startswith(b"HTTP/1.")):
        raise ValueError(f"the connection stays, or its answer is none: {bytes(transport.written[:60])!r}")
    if b"HTTP/1.1 500" in transport.written:
        raise ValueError("an error of the server's own")


# Clients over TCP


class HostileRemoteClient:
    """Sends inputs to a proxy that serves others: the first byte says who sends, or answers, and on which channel."""

    def __init__(self) -> None:
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._core = RemoteClients(max_clients=3)
        self._core.handle(Arrived(b"honest", b"key", CLIENTS.encode(), msgspec.msgpack.encode(_submit("honest"))))

    def __call__(self, data: bytes) -> None:
        """Raise whatever the proxy raises, and ValueError if it passes on what the engine cannot read."""
        self._count += 1
        if self._count % MESSAGES_A_CORE == 0:
            self._begin()
        choice, payload = (data[0], data[1:]) if data else (0, b"")
        event = _event_of(choice, payload)
        for action in self._core.handle(event):
            if isinstance(event, Arrived) and event.channel == CLIENTS.encode():
                _require_readable(action)


def _require_readable(action: object) -> None:
    """Raise ValueError if engine or client cannot read what a message of a client causes."""
    if isinstance(action, Forward) and isinstance(decode(FROM_CLIENT, action.payload), Unreadable):
        raise ValueError("what cannot be read was passed on")
    if isinstance(action, Reply) and isinstance(decode(TO_CLIENT, action.payload), Unreadable):
        raise ValueError("a client cannot read what it is told")


def _event_of(choice: int, payload: bytes) -> Arrived | Answered | Undelivered | Tick:
    """Return the event: bits 0 and 1 are the client, bits 2 to 4 what happens."""
    identity = (b"honest", b"one", b"two", b"three")[choice & 3]
    match choice >> 2 & 7:
        case 0:
            return Arrived(identity, b"key", CLIENTS.encode(), payload)
        case 1:
            return Arrived(identity, b"key", MONITOR.encode() if choice & 32 else payload[:9], payload)
        case 2 | 3:
            return Answered(identity, payload)
        case 4 | 5:
            return Undelivered(identity, payload, gone=choice & 32 > 0)
        case _:
            return Tick(lambda key: choice & 32 == 0)


def _submit(request_id: str) -> Submit:
    return Submit(request_id=request_id, prompt_ids=[1, 2], max_new_tokens=3)


def _remote_seeds() -> list[bytes]:
    submit, finished = (msgspec.msgpack.encode(each) for each in (_submit("a"), _answers()[3]))
    return [b"\1" + submit, b"\2" + submit, b"\x25\x81\xa4type\xabAskSnapshot", b"\x09" + finished, b"\x11" + finished,
            b"\x31" + finished, b"\x18" + submit]  # fmt: skip


# A scheduler that says what it likes, and a model


class LyingScheduler:
    """Sends answers to a client that waits for two requests; only errors of ours may come of it."""

    def __init__(self) -> None:
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._session, self._now_ns = EngineSession(), 1
        self._requests = [ClientRequest(number, _submit(name), BatchUpdates()) for number, name in enumerate("ab")]
        for request in self._requests:
            self._session.submit(request, 1)

    def __call__(self, data: bytes) -> None:
        self._count += 1
        if self._count % MESSAGES_A_CORE == 0:
            self._begin()
        message = decode(TO_CLIENT, data)
        if isinstance(message, Unreadable):
            return
        self._now_ns += 1_000_000_000
        self._session.due(self._now_ns)
        self._session.receive(message, self._now_ns)
        if isinstance(message, Finished):
            read_routes(message.routed_experts)
            self._begin()


def _answers() -> list[Any]:
    timings = Timings(queued_ns=0, first_token_ns=0, total_ns=0)
    routes = RoutedExperts(shape=(2, 2, 1), dtype="uint16", data=bytes(8))
    end = partial(Finished, request_id="a", token_ids=[5, 6], finish_reason="length", timings=timings)
    return [Accepted("a"), Tokens("a", 0, [5]), Tokens("b", 1, [6]), end(), end(routed_experts=routes),
            Refused("b", ErrorFacts(code="busy", what="is full", where="queue", remedy="Wait"))]  # fmt: skip


def finished_with_routes(shape: tuple[int, int, int]) -> bytes:
    """Return the end of a request with eight bytes of routed experts, which state this shape."""
    routes = RoutedExperts(shape=shape, dtype="uint16", data=bytes(8))
    return msgspec.msgpack.encode(msgspec.structs.replace(_answers()[3], routed_experts=routes))


def _answer_seeds() -> list[bytes]:
    return [msgspec.msgpack.encode(each) for each in _answers()]


def _model_seeds() -> list[bytes]:
    return [bytes([number * 8]) + text.encode() for number, text in enumerate(ANSWERS)]


def _read_answer(data: bytes) -> None:
    """Take an answer apart whole and in pieces. Raises ValueError if that differs."""
    choice, text = (data[0], data[1:].decode("utf-8", "replace")) if data else (0, "")
    form = AnswerFormat(list(TOOL_FORMATS)[choice // 8 % len(TOOL_FORMATS)], reasoning=bool(choice & 1))
    make = partial(form.parser, "<think>" if choice & 2 else "", bool(choice & 4 or choice < 64))
    whole, parts = _parts_of(make, [text]), _parts_of(make, list(text[:500]) + [text[500:]])
    if whole != parts:
        raise ValueError(f"depends on the pieces: {whole} and {parts}")


def _parts_of(make: Callable[[], Any], pieces: list[str]) -> AnswerParts:
    parser, parts = make(), AnswerParts()
    for piece in pieces:
        parts += parser.feed(piece)
    return parts + parser.finish()


