"""Links and routers: nothing blocks, nothing is lost between living ends, nothing unreadable gets through."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
import zmq
from expertflow.ipc.messages import Filled, Hello, Miss, Released, Submit, Welcome
from expertflow.ipc.messages.to_scheduler import FROM_CLIENT
from expertflow.ipc.shared.rundir import RunDir
from expertflow.ipc.stage.wiring import decoders_of
from expertflow.ipc.transport.addresses import Party, pair_address, socket_address
from expertflow.ipc.transport.codec import Unreadable
from expertflow.ipc.transport.link import Link, LinkCut
from expertflow.ipc.transport.router import Router
from expertflow.ipc.transport.sockets import Context, Socket
from expertflow.tests.runtime.fakes import wait_until

COMPUTE, LOADER = Party("compute", 1), Party("loader", 1)
WELCOME = Welcome(model="m", vocabulary=1, context=1, eos_ids=[], queue_limit=1)


@pytest.fixture
def end(context: Context, run_dir: RunDir) -> Iterator[Callable[[Party, Party], Link[Any]]]:
    """Opens one end of a pair; closes all afterwards."""
    opened: list[Link[Any]] = []

    def open_end(me: Party, peer: Party) -> Link[Any]:
        decoder = decoders_of(me.stage)[peer.stage]
        opened.append(Link.pair(context, str(run_dir.path), me, peer, decoder))
        return opened[-1]

    yield open_end
    for link in opened:
        link.close()


def receive(link: Link[Any], count: int, *others: Link[Any]) -> list[Any]:
    """This many messages; `others` are served meanwhile, since a bound end flushes when it is polled."""
    got: list[Any] = []
    deadline = time.monotonic() + 20
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} came"
        link.socket.poll(10)
        got += link.receive()
        for other in others:
            assert other.receive() == []
    return got


@pytest.mark.parametrize("first", [COMPUTE, LOADER])
def test_what_is_sent_before_the_peer_is_there_arrives_in_order(end: Callable[..., Link[Any]], first: Party):
    """Whichever end binds, and whichever is there first: stages start in any order and must not lose a Need."""
    count = 5000  # more than ZeroMQ's default mark of 1000
    ends = {}
    for me, peer in sorted([(COMPUTE, LOADER), (LOADER, COMPUTE)], key=lambda pair: pair[0] != first):
        ends[me.stage] = end(me, peer)
        for number in range(count):
            ends[me.stage].send(Miss(number, 0, []) if me == COMPUTE else Filled(number, 0, 0))
    needs = receive(ends["loader"], count)
    filled = receive(ends["compute"], count, ends["loader"])
    assert [need.step for need in needs] == list(range(count))
    assert [fill.slot for fill in filled] == list(range(count))
    assert ends["loader"].rejected == ends["compute"].rejected == 0


def test_epochs_do_not_hear_each_other(end: Callable[..., Link[Any]]):
    """R8: a Need of a dead compute process reaching its successor's loader link would fill slots for nobody."""
    old = end(COMPUTE, LOADER)
    old.send(Miss(1, 0, []))
    new = end(Party("compute", 2), LOADER)
    new.send(Miss(2, 0, []))
    loader = end(LOADER, Party("compute", 2))
    assert [need.step for need in receive(loader, 1)] == [2]
    assert not loader.socket.poll(50)


def test_epochs_have_addresses_of_their_own():
    """A DEALER keeps what is queued across a reconnect: at a shared address the successor would get it."""
    both = {pair_address("/r", COMPUTE, LOADER), pair_address("/r", LOADER, COMPUTE)}
    assert len(both) == 1
    assert pair_address("/r", COMPUTE, Party("loader", 2)) not in both
    assert pair_address("/r", Party("compute", 2), LOADER) not in both


def connections_at(path: str) -> list[int]:
    """Descriptors of this process that are ends of connections to the Unix socket `path`: those of the end that bound
    it. The socket that listens there has the same name."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            peeked = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed meanwhile
            continue
        with peeked:
            listens = peeked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if peeked.family == socket.AF_UNIX and not listens and peeked.getsockname() == path:
                found.append(int(name))
    return found


@pytest.mark.parametrize("sender", ["bound", "connected", "nobody"])
def test_a_connection_that_broke_between_living_ends_is_not_taken_for_whole(
    end: Callable[..., Link[Any]], run_dir: RunDir, sender: str
):
    """ZeroMQ connects again and says nothing: what was on its way is lost, and neither end knows that it was."""
    loader, compute = Party("loader", 1), Party("compute", 1)
    bound, connected = end(loader, compute), end(compute, loader)
    connected.send(Miss(0, 1, [1]))
    assert receive(bound, 1, connected) == [Miss(0, 1, [1])]
    path = pair_address(str(run_dir.path), loader, compute).removeprefix("ipc://")
    connected.require_whole()
    [descriptor] = connections_at(path)
    with socket.socket(fileno=os.dup(descriptor)) as broken:
        broken.shutdown(socket.SHUT_RDWR)
    if sender == "bound":
        bound.send(Filled(1, 1, 1))
    if sender == "connected":
        connected.send(Miss(0, 1, [2]))
    with pytest.raises(LinkCut):
        wait_until(lambda: connected.require_whole() or bound.receive() and False)


def test_the_end_of_a_peer_is_no_broken_connection(end: Callable[..., Link[Any]]):
    loader, compute = Party("loader", 1), Party("compute", 1)
    bound, connected = end(loader, compute), end(compute, loader)
    connected.send(Miss(0, 1, [1]))
    assert receive(bound, 1, connected) == [Miss(0, 1, [1])]
    bound.close()
    time.sleep(0.3)  # longer than a connection takes to be made again
    connected.require_whole()


def test_a_stranger_on_a_bound_end_is_neither_heard_nor_served(
    end: Callable[..., Link[Any]], context: Context, run_dir: RunDir
):
    """A plain bound DEALER would deal every second message to whoever else connects."""
    loader = end(LOADER, COMPUTE)
    with closing(stranger_at(context, pair_address(str(run_dir.path), LOADER, COMPUTE))) as stranger:
        stranger.send(msgspec.msgpack.encode(Released([1], 0, 0)))
        assert loader.socket.poll(5000)
        assert loader.receive() == []
        assert loader.rejected == 1
        compute = end(COMPUTE, LOADER)
        for number in range(10):
            loader.send(Filled(number, 0, 0))
        assert len(receive(compute, 10, loader)) == 10
        assert not stranger.poll(50)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\x00",
        b"\x81\xa1a" * 5000,
        msgspec.msgpack.encode({"type": "Miss", "step": "one", "layer": 0, "experts": []}),
        msgspec.msgpack.encode({"type": "RunStep", "number": 1, "unit": 1}),
        b"\x81\xa4type\xa4\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ],
    ids=["bytes", "deep nesting", "wrong type", "another's message", "broken text", "a length of 4 GB"],
)
def test_what_is_no_message_is_counted_and_dropped(end: Callable[..., Link[Any]], payload: bytes):
    """Each of these raises another error inside the decoder; none may end a stage."""
    loader, compute = end(LOADER, COMPUTE), end(COMPUTE, LOADER)
    compute.socket.send(payload)
    compute.socket.send_multipart([b"two", b"frames"])
    compute.send(Miss(7, 0, []))
    assert receive(loader, 1) == [Miss(7, 0, [])]
    assert loader.rejected == 2


def test_unknown_fields_are_ignored(end: Callable[..., Link[Any]]):
    """So that a newer sender may say more."""
    loader, compute = end(LOADER, COMPUTE), end(COMPUTE, LOADER)
    compute.socket.send(msgspec.msgpack.encode({"type": "Released", "slots": [], "step": 0, "layer": 0, "news": 1}))
    assert receive(loader, 1) == [Released([], 0, 0)]


def test_every_stage_has_a_decoder_for_each_of_its_peers():
    """One-sided wiring would leave a stage without the link that its peer opens."""
    stages = ("scheduler", "predictor", "loader", "compute")
    pairs = {(stage, peer) for stage in stages for peer in decoders_of(stage)}
    assert pairs == {(peer, stage) for stage, peer in pairs}
    assert len(pairs) == 8
    assert decoders_of("stranger") == {}


@pytest.fixture
def router(context: Context, run_dir: RunDir) -> Iterator[Router[Any]]:
    with closing(Router(context, socket_address(str(run_dir.path), "clients"), FROM_CLIENT)) as made:
        yield made


def receive_from(router: Router[Any], count: int) -> list[tuple[bytes, Any]]:
    got: list[tuple[bytes, Any]] = []
    while len(got) < count:
        assert router.socket.poll(10_000), f"{len(got)} of {count} came"
        got += router.receive()
    return got


def test_a_router_answers_each_by_name_and_reports_garbage(router: Router[Any], context: Context, run_dir: RunDir):
    address = socket_address(str(run_dir.path), "clients")
    with closing(stranger_at(context, address)) as one, closing(stranger_at(context, address)) as other:
        one.send(msgspec.msgpack.encode(Hello()))
        [(identity, hello)] = receive_from(router, 1)
        other.send(b"\xff")
        other.send_multipart([b"a", b"b"])
        reasons = [message.reason for _, message in receive_from(router, 2) if isinstance(message, Unreadable)]
        assert hello == Hello()
        assert (len(reasons), router.rejected) == (2, 2)
        assert "2 frames" in reasons[1]
        assert router.send(identity, WELCOME)
        assert one.poll(5000)
        assert not other.poll(20)


def test_a_vanished_client_costs_an_answer_not_the_scheduler(router: Router[Any], context: Context, run_dir: RunDir):
    """Without ROUTER_MANDATORY it would be silent, with it and no care it would raise."""
    with closing(stranger_at(context, socket_address(str(run_dir.path), "clients"))) as client:
        client.send(msgspec.msgpack.encode(Hello()))
        [(identity, _)] = receive_from(router, 1)
    deadline = time.monotonic() + 10
    while router.send(identity, WELCOME):
        assert time.monotonic() < deadline
    assert router.dropped == 1
    assert not router.send(b"nobody", WELCOME)


def test_a_client_that_does_not_read_does_not_block_the_scheduler(context: Context, run_dir: RunDir):
    """Its answers are dropped at the mark; a blocking send would stop everybody's tokens."""
    address = socket_address(str(run_dir.path), "clients")
    big = Welcome(model="m" * 100_000, vocabulary=1, context=1, eos_ids=[], queue_limit=1)
    with closing(Router(context, address, FROM_CLIENT, high_water=5)) as router:
        slow = context.socket(zmq.DEALER)
        slow.rcvhwm = 1
        with closing(slow):
            slow.connect(address)
            slow.send(msgspec.msgpack.encode(Hello()))
            [(identity, _)] = receive_from(router, 1)
            assert not all(router.send(identity, big) for _ in range(200))
            slow.linger = 0


def test_a_router_can_be_bound_again_where_a_killed_one_left_its_file(context: Context, run_dir: RunDir):
    """A scheduler's successor takes the same path, and clients reconnect by themselves; what they said to the dead one
    just before is lost, so they say it again."""
    address = socket_address(str(run_dir.path), "clients")
    first = Router(context, address, FROM_CLIENT)
    with closing(Link.connect(context, address, FROM_CLIENT)) as client:
        client.send(Hello())
        receive_from(first, 1)
        first.close()
        assert (run_dir.path / "clients").exists(), "ZeroMQ tidies up by itself now: put a file there"
        with closing(Router(context, address, FROM_CLIENT)) as second:
            wait_until(
                lambda: client.send(Submit(request_id="r", prompt_ids=[1], max_new_tokens=1)) or second.receive()
            )


def test_a_flood_does_not_hold_the_loop(router: Router[Any], context: Context, run_dir: RunDir):
    with closing(stranger_at(context, socket_address(str(run_dir.path), "clients"))) as client:
        for _ in range(50):
            client.send(msgspec.msgpack.encode(Hello()))
        assert router.socket.poll(5000)
        assert len(router.receive(limit=3)) <= 3
        assert len(receive_from(router, 47)) >= 47


@pytest.mark.parametrize("identity", [b"", b"loader", b"loader.", b"loader.x", "loader.²".encode()])
def test_bytes_that_name_no_party_are_told_apart(identity: bytes):
    """int() takes more digits than ours: the supervisor must not fall over a stranger's identity."""
    assert Party.from_identity(identity) is None
    assert Party.from_identity(LOADER.identity) == LOADER


def stranger_at(context: Context, address: str) -> Socket:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    return socket
