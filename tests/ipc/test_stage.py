"""The shell of a stage, seen by a supervisor and a peer that the test plays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError
from expertflow.ipc.messages import Drain, Failed, Filled, Message, Miss, Peer, PeerDied, Published, Ready, Released
from expertflow.ipc.messages.control import FROM_STAGE
from expertflow.ipc.shared.rundir import RunDir
from expertflow.ipc.stage.events import PeerJoined, PeerLost, Readable, Received, Stopping
from expertflow.ipc.stage.stage import Stage
from expertflow.ipc.stage.startup import StageSpec
from expertflow.ipc.stage.wiring import decoders_of
from expertflow.ipc.transport.addresses import CONTROL, Party, socket_address
from expertflow.ipc.transport.link import Link
from expertflow.ipc.transport.router import Router
from expertflow.ipc.transport.sockets import Context


class Bench:
    """A loader with the test as its supervisor and, on demand, as its compute."""

    def __init__(self, context: Context, run_dir: str, timeline: str) -> None:
        self.context, self.run_dir = context, run_dir
        self.supervisor = Router(context, socket_address(run_dir, CONTROL), FROM_STAGE)
        self.stage = Stage(
            StageSpec(stage="loader", epoch=3, run_dir=run_dir, config=Config(timeline=timeline), survey_path="")
        )
        self.peers: list[Link[Any]] = []

    def compute(self, epoch: int) -> Link[Any]:
        peer = Link.pair(
            self.context, self.run_dir, Party("compute", epoch), Party("loader", 3), decoders_of("compute")["loader"]
        )
        self.peers.append(peer)
        return peer

    def order(self, message: Message) -> None:
        while not self.supervisor.send(b"loader.3", message):  # until it has connected
            time.sleep(0.005)

    def heard(self, kind: type[Any]) -> Any:
        """The next message of this kind that reaches the supervisor."""
        while self.supervisor.socket.poll(10_000):
            for identity, message in self.supervisor.receive():
                assert identity == b"loader.3"
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")

    def events(self, count: int) -> list[Any]:
        got: list[Any] = []
        deadline = time.monotonic() + 20
        while len(got) < count:
            assert time.monotonic() < deadline, f"only {got}"
            got += self.stage.poll(100)
        return got

    def close(self) -> None:
        self.stage.close()
        self.supervisor.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def make_bench(context: Context, run_dir: RunDir) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(timeline: str = "") -> Bench:
        made.append(Bench(context, str(run_dir.path), timeline))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def test_a_peer_joins_and_both_are_heard(bench: Bench):
    bench.stage.ready({"slots": 4})
    assert bench.heard(Ready) == Ready("loader", 3, {"slots": 4})
    bench.order(Peer("compute", 7, {"threads": 2}))
    assert bench.events(1) == [PeerJoined("compute", 7, {"threads": 2})]
    bench.stage.send("compute", Filled(1, 2, 3))
    compute = bench.compute(7)
    compute.send(Miss(1, 2, [3]))
    assert bench.events(1) == [Received("compute", Miss(1, 2, [3]))]
    assert compute.socket.poll(5000)
    assert compute.receive() == [Filled(1, 2, 3)]


def test_a_new_epoch_of_a_peer_replaces_the_old_one(bench: Bench):
    """R8: what the dead one had sent must not be heard any more, nor what it was sent reach its successor."""
    bench.order(Peer("compute", 1, {}))
    assert bench.events(1)
    old = bench.compute(1)
    old.send(Released([1], 0, 0))
    assert bench.events(1) == [Received("compute", Released([1], 0, 0))]
    bench.stage.send("compute", Filled(1, 0, 0))
    bench.order(Peer("compute", 2, {}))
    assert bench.events(1) == [PeerJoined("compute", 2, {})]
    new = bench.compute(2)
    old.send(Released([2], 0, 0))
    new.send(Released([3], 0, 0))
    assert bench.events(1) == [Received("compute", Released([3], 0, 0))]
    bench.stage.send("compute", Filled(2, 0, 0))
    assert new.socket.poll(5000)
    assert new.receive() == [Filled(2, 0, 0)]


def test_a_peer_that_died_is_heard_to_the_end_and_then_lost(bench: Bench):
    """What it had done counts; what is sent to it afterwards does not wait for its successor."""
    bench.order(Peer("compute", 1, {}))
    assert bench.events(1)
    old = bench.compute(1)
    old.send(Released([1], 0, 0))
    assert bench.stage._links["compute"].socket.poll(5000)
    bench.order(PeerDied("compute", 1))
    assert bench.events(2) == [Received("compute", Released([1], 0, 0)), PeerLost("compute", 1)]
    bench.stage.send("compute", Filled(1, 0, 0))
    bench.order(Peer("compute", 2, {}))
    assert bench.events(1) == [PeerJoined("compute", 2, {})]
    new = bench.compute(2)
    new.send(Released([3], 0, 0))
    assert bench.events(1) == [Received("compute", Released([3], 0, 0))]
    bench.stage.send("compute", Filled(2, 0, 0))
    assert new.socket.poll(5000)
    assert new.receive() == [Filled(2, 0, 0)]


def test_an_answer_to_a_dead_peer_does_not_reach_its_successor(bench: Bench):
    """A stage that was slow hears of both at once; compute would be told to move a row that it does not have."""
    bench.order(Peer("compute", 1, {}))
    assert bench.events(1)
    bench.compute(1).send(Released([1], 0, 0))
    assert bench.stage._links["compute"].socket.poll(5000)
    new = bench.compute(2)
    for message in (PeerDied("compute", 1), Peer("compute", 2, {})):
        bench.order(message)
    assert bench.stage._control.socket.poll(5000)
    time.sleep(0.05)  # both have come: with only one of them the test would pass for nothing
    assert bench.stage.poll(100) == [Received("compute", Released([1], 0, 0)), PeerLost("compute", 1)]
    bench.stage.send("compute", Filled(1, 0, 0))
    assert bench.events(1) == [PeerJoined("compute", 2, {})]
    new.send(Released([3], 0, 0))
    assert bench.events(1) == [Received("compute", Released([3], 0, 0))]
    bench.stage.send("compute", Filled(2, 0, 0))
    assert new.socket.poll(5000)
    assert new.receive() == [Filled(2, 0, 0)]


def test_the_death_of_an_older_epoch_cuts_no_living_link(bench: Bench):
    for message in (Peer("compute", 2, {}), PeerDied("compute", 1), PeerDied("predictor", 1), Drain()):
        bench.order(message)
    assert bench.events(2) == [PeerJoined("compute", 2, {}), Stopping(gently=True)]
    bench.compute(2).send(Released([3], 0, 0))
    assert bench.events(1) == [Received("compute", Released([3], 0, 0))]


def test_an_old_or_unknown_peer_is_not_joined(bench: Bench):
    """Introductions cross: an older one after a newer one would cut the living link."""
    for message in (Peer("compute", 2, {}), Peer("compute", 1, {}), Peer("compute", 2, {}), Peer("stranger", 1, {})):
        bench.order(message)
    bench.order(Drain())
    assert bench.events(2) == [PeerJoined("compute", 2, {}), Stopping(gently=True)]


def test_sending_to_a_peer_that_is_down_is_no_error(bench: Bench):
    bench.stage.send("compute", Filled(1, 2, 3))
    bench.stage.send("nobody", Filled(1, 2, 3))


def test_being_drained_or_told_ends_the_loop(bench: Bench):
    assert bench.stage.running
    bench.order(Drain())
    assert bench.events(1) == [Stopping(gently=True)]
    assert not bench.stage.running
    bench.stage.stop(gently=False)
    assert bench.stage.poll(0) == [Stopping(gently=False)]


def test_a_signal_ends_a_poll_at_once(bench: Bench):
    """A flag alone would be seen only when the poll's time is over, and by then the ladder has come to SIGKILL."""
    from expertflow.ipc.stage.entry import _handle_signals

    before = signal.getsignal(signal.SIGTERM)
    _handle_signals(bench.stage)
    try:
        os.kill(os.getpid(), signal.SIGTERM)  # handled before the poll begins: only the descriptor can end it
        start = time.monotonic()
        assert bench.stage.poll(30_000) == [Stopping(gently=False)]
        assert time.monotonic() - start < 15
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)


def test_other_descriptors_can_be_watched(bench: Bench):
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bench.stage.watch("done", fd)
    assert bench.stage.poll(0) == []
    os.eventfd_write(fd, 1)
    assert bench.stage.poll(1000) == [Readable("done")]
    os.close(fd)


def test_it_publishes_what_it_did_and_that_waiting_is_not_work(bench: Bench):
    """Busy time is what tells a bottleneck; a stage that waits in poll must not look busy."""
    assert bench.stage.publish_due
    bench.stage.poll(300)
    bench.stage.publish(done=5, queue=2, waiting_on="compute", counters={"hits": 3})
    stats = bench.heard(Published).stats
    assert (stats.stage, stats.epoch, stats.pid) == ("loader", 3, os.getpid())
    assert (stats.done, stats.queue, stats.waiting_on) == (5, 2, "compute")
    assert stats.counters == {"hits": 3, "sent": 0, "rejected": 0}
    bench.stage.poll(300)
    bench.stage.publish()
    later = bench.heard(Published).stats
    assert later.busy_ns - stats.busy_ns < later.time_ns - stats.time_ns - 250_000_000
    assert not bench.stage.publish_due


def test_spans_are_kept_only_for_a_timeline(make_bench: Callable[..., Bench]):
    """Without one nobody takes them: they would pile up."""
    for timeline, count in (("", 0), ("trace.json", 2)):
        bench = make_bench(timeline)
        with bench.stage.span("read", lane=1, layer=4):
            pass
        bench.stage.add_span("wait", 5, 9)
        bench.stage.publish()
        spans = bench.heard(Published).spans
        assert len(spans) == count
        bench.close()
    assert (spans[0].name, spans[0].lane, spans[0].detail) == ("read", 1, {"layer": 4})
    assert (spans[1].start_ns, spans[1].end_ns) == (5, 9)


def test_what_is_unreadable_is_published_and_survives_the_link(bench: Bench):
    bench.order(Peer("compute", 1, {}))
    bench.events(1)
    compute = bench.compute(1)
    compute.socket.send(b"\xff")
    compute.send(Miss(1, 0, []))
    bench.events(1)
    bench.order(Peer("compute", 2, {}))
    bench.events(1)
    assert bench.stage.rejected == 1


def test_a_failure_keeps_its_type(bench: Bench):
    bench.stage.fail(BudgetError("too large", remedy="Take less"))
    error = bench.heard(Failed).error
    assert (error.code, error.what, error.where, error.remedy) == ("budget", "too large", "stage loader", "Take less")


def test_last_words_are_delivered_after_closing(make_bench: Callable[..., Bench]):
    """A stage that fails closes at once; with no lingering its reason would be thrown away."""
    bench = make_bench()
    bench.stage.fail(BudgetError("too large"))
    bench.stage.close()
    assert bench.heard(Failed)
