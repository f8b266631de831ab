"""A client that knows nothing but docs/protocol.md: plain pyzmq and msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
import zmq
from expertflow.errors import error_from_code
from expertflow.ipc.messages import Details, Sampling, to_client, to_scheduler
from expertflow.tests.scheduler.fake_engine import FakeEngine

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def tables() -> list[list[list[str]]]:
    """The cells of every table of the document, headings left out."""
    found: list[list[list[str]]] = [[]]
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


def fields_of(table: list[list[str]]) -> dict[str, list[str]]:
    """Message name to the names of its fields."""
    messages: dict[str, list[str]] = {}
    name = ""
    for row in table:
        name = row[0] or name
        messages.setdefault(name, []).extend([row[1]] if row[1] else [])
    return messages


class ForeignClient:
    """What somebody else would write."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"ipc://{address}/clients")

    def say(self, **message: Any) -> None:
        self.socket.send(msgpack.packb(message) or b"")

    def receive(self) -> dict[str, Any]:
        assert self.socket.poll(10_000), "no answer"
        return msgpack.unpackb(self.socket.recv())

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path) as engine:
        yield engine


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[ForeignClient]:
    client = ForeignClient(engine.address)
    yield client
    client.close()


def test_the_tables_name_every_message_and_field() -> None:
    """Documentation that is not checked goes stale."""
    to_engine, options, from_engine, codes = tables()
    for table, module in ((to_engine, to_scheduler.FromClient), (from_engine, to_client.ToClient)):
        structs = {kind.__name__: [field.name for field in msgspec.structs.fields(kind)] for kind in module.__args__}
        assert fields_of(table) == structs
    sampling, details = msgspec.structs.fields(Sampling), msgspec.structs.fields(Details)
    assert fields_of(options) == {
        "sampling": [field.name for field in sampling], "details": [field.name for field in details],
    }  # fmt: skip
    for [code, _] in codes:
        assert error_from_code(code, "", "", "").code == code


def test_defaults_are_as_documented() -> None:
    """Whoever leaves a field out must get what the table promises."""
    to_engine, options, *_ = tables()
    documented = {row[1]: row[3] for row in to_engine if row[1] and row[3]}
    submit = to_scheduler.Submit(request_id="", prompt_ids=[], max_new_tokens=1)
    optional = {field.name for field in msgspec.structs.fields(submit) if not field.required}
    assert set(documented) == optional
    assert (submit.eos_ids, submit.deadline_ms, submit.resume_ids) == (None, None, [])
    written = {"nil": None, "false": False, "{}": {}, '""': ""}
    defaults = [(row[1], written.get(row[3]) if row[3] in written else float(row[3])) for row in options]
    actual = {**msgspec.to_builtins(submit.sampling), **msgspec.structs.asdict(submit.details)}
    assert dict(defaults) == actual


def test_the_conversation_of_the_protocol_page_happens(client: ForeignClient) -> None:
    client.say(type="Hello")
    welcome = client.receive()
    assert (welcome["type"], welcome["context"]) == ("Welcome", 64)
    client.say(type="Submit", request_id="1", prompt_ids=[5, 9, 11], max_new_tokens=3, eos_ids=[])
    assert client.receive() == {"type": "Accepted", "request_id": "1"}
    output: list[int] = []
    while (answer := client.receive())["type"] == "Tokens":
        assert answer["offset"] == len(output)
        output += answer["token_ids"]
    assert (answer["type"], answer["finish_reason"], answer["token_ids"]) == ("Finished", "length", output)
    assert set(answer["timings"]) == {"queued_ns", "first_token_ns", "total_ns", "recomputed"}
    assert len(output) == 3


def test_submitted_again_everything_is_said_again(client: ForeignClient) -> None:
    """The rule for reconnecting, after the end and with output to resume from."""
    request = {"type": "Submit", "request_id": "1", "prompt_ids": [5], "max_new_tokens": 2, "eos_ids": []}
    client.say(**request)
    while (end := client.receive())["type"] != "Finished":
        pass
    client.say(**request, resume_ids=end["token_ids"][:1], deadline_ms=5)
    assert [client.receive()["type"] for _ in range(2)] == ["Accepted", "Tokens"]
    assert client.receive() == end


def test_a_cancelled_request_finishes_as_cancelled(client: ForeignClient, engine: FakeEngine) -> None:
    """And an unknown id is ignored."""
    engine.paused.set()
    client.say(type="Cancel", request_id="2")
    client.say(type="Submit", request_id="1", prompt_ids=[5], max_new_tokens=2)
    client.say(type="Cancel", request_id="1")
    assert client.receive()["type"] == "Accepted"
    assert client.receive()["finish_reason"] == "cancelled"


@pytest.mark.parametrize(
    ("broken", "about"),
    [
        ({"prompt_ids": [True]}, "int"),
        ({"prompt_ids": [1.5]}, "int"),
        ({"prompt_ids": "text"}, "array"),
        ({"max_new_tokens": "many"}, "int"),
        ({"max_new_tokens": None}, "int"),
        ({"type": "Submitt"}, "Submitt"),
        ({"sampling": {"temperature": "hot"}}, "float"),
    ],
)
def test_a_broken_message_is_refused_under_its_id(client: ForeignClient, broken: dict[str, Any], about: str) -> None:
    """Whoever writes a client must learn from the answer what is wrong."""
    client.say(**{"type": "Submit", "request_id": "1", "prompt_ids": [5], "max_new_tokens": 2, **broken})
    answer = client.receive()
    assert (answer["type"], answer["request_id"], answer["error"]["code"]) == ("Refused", "1", "request")
    assert about in answer["error"]["what"]


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"hello", msgpack.packb([1, 2]), msgpack.packb({"request_id": 5})])
def test_garbage_does_not_hurt(client: ForeignClient, garbage: bytes) -> None:
    """Bytes of any kind: the engine goes on."""
    client.socket.send(garbage)
    client.socket.send_multipart([b"two", b"frames"])
    client.say(type="Hello")
    while (answer := client.receive())["type"] != "Welcome":
        assert (answer["type"], answer["request_id"]) == ("Refused", "")


def test_unknown_fields_are_ignored(client: ForeignClient) -> None:
    """A newer client may talk to an older engine."""
    client.say(type="Hello", colour="green")
    assert client.receive()["type"] == "Welcome"
