"""Simulated sockets: they keep the order of a link, delay, and lose what real ones lose when a process dies.

- A message that is sent before the other end exists waits in its sender (`Link`'s outbox), and is lost with it.
- What a killed process has sent arrives up to some message; the rest is lost. What it had received is lost.
- A client's socket reconnects by itself: what it had not written yet goes to the next scheduler, what was written is
  lost with the old one.
- A connection between two living stages that breaks is made again a moment later. What was on its way is lost, from
  some message on, and so is what the bound end sends meanwhile. The end that connects hears of it when it asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from expertflow.ipc.messages import Message
from expertflow.ipc.stage.wiring import decoders_of
from expertflow.ipc.transport.addresses import Party
from expertflow.ipc.transport.codec import Unreadable
from expertflow.ipc.transport.delivery import Delivery
from expertflow.ipc.transport.link import LinkCut
from expertflow.tests.simulation.current import CURRENT

DELAY_US = (20, 1500)
RECONNECT_US = (5_000, 100_000)
ENCODER = msgspec.msgpack.Encoder()
DECODERS = {
    (receiver, sender): decoder
    for receiver in ("compute", "loader", "predictor", "scheduler")
    for sender, decoder in decoders_of(receiver).items()
}


class Wire:
    """One direction between two sockets. `arrive` is called after a message has arrived in `arrived`."""

    def __init__(self, name: str, decode: Callable[[bytes], Any], arrive: Callable[[], None]) -> None:
        self.name, self.arrived = f"deliver {name}", deque[Any]()
        self.under_way: deque[bytes] = deque()
        self.open = True
        self._decode, self._arrive = decode, arrive
        self._last_us = 0

    def carry(self, data: bytes) -> None:
        """Take a message on its way, behind those before it."""
        self.under_way.append(data)
        agenda = CURRENT.world.agenda
        self._last_us = max(self._last_us, agenda.now_us + agenda.delay(*DELAY_US))
        agenda.at(self.name, self._deliver, self._last_us)

    def keep(self, count: int) -> list[bytes]:
        """Lose all but the first messages under way; return the lost ones."""
        lost = list(self.under_way)[count:]
        for _ in lost:
            self.under_way.pop()
        return lost

    def close(self) -> None:
        """Lose all."""
        self.open = False
        self.under_way.clear()
        self.arrived.clear()

    def _deliver(self) -> Any:
        if not self.under_way:
            return "nothing: it was lost"
        message = self._decode(self.under_way.popleft())
        self.arrived.append(message)
        self._arrive()
        return message


class Channel:
    """Both directions between two starts of stages, once both have opened it."""

    def __init__(self, parties: tuple[Party, Party]) -> None:
        self.ends: dict[Party, SimulatedLink] = {}
        self.wires: dict[Party, Wire] = {}
        """By sender."""
        self.parties, self.cut_off, self.joined_again = parties, False, False
        self._outbox: list[tuple[Party, bytes]] = []
        for sender, receiver in (parties, parties[::-1]):
            decode = DECODERS[receiver.stage, sender.stage].decode
            self.wires[sender] = Wire(f"{name_of(sender)}→{name_of(receiver)}", decode, self._waker(receiver))

    @property
    def broken(self) -> bool:
        """Return whether the connection broke, whether or not it has been made again."""
        return self.cut_off or self.joined_again

    def open(self, party: Party, link: SimulatedLink) -> None:
        """Open the end of a party; what either has sent meanwhile goes on its way."""
        self.ends[party] = link
        if len(self.ends) == 2:
            for sender, data in self._outbox:
                self.wires[sender].carry(data)
            self._outbox.clear()

    def send(self, sender: Party, data: bytes) -> None:
        if self.cut_off and sender == self.parties[1]:
            return
        if len(self.ends) == 2:
            if self.wires[sender].open:
                self.wires[sender].carry(data)
        else:
            self._outbox.append((sender, data))

    def cut(self, draw: int) -> str:
        """Break the connection between both ends, and let it be made again."""
        if len(self.ends) < 2 or self.cut_off or not all(wire.open for wire in self.wires.values()):
            return "nothing: there is none"
        self.cut_off = True
        for wire in self.wires.values():
            wire.keep(draw % (len(wire.under_way) + 1))
        name = f"connect {name_of(self.parties[0])} again"
        CURRENT.world.agenda.after(name, self._join, *RECONNECT_US, may_be_late=False)
        return "until it is made again"

    def _join(self) -> Any:
        if any(link.socket.closed for link in self.ends.values()):
            return "nothing: an end is closed"
        self.cut_off, self.joined_again = False, True
        return None

    def close(self, party: Party, keep: int) -> None:
        """Close the end of a party: it receives no more, and the first `keep` messages under way still arrive."""
        self._outbox = [entry for entry in self._outbox if entry[0] != party]
        for sender, wire in self.wires.items():
            if sender == party:
                wire.keep(keep)
                continue
            wire.close()

    def _waker(self, receiver: Party) -> Callable[[], None]:
        return lambda: CURRENT.world.wake(receiver)


class SimulatedSocket:
    """The part of a socket that is polled."""

    def __init__(self, arrived: deque[Any]) -> None:
        self.arrived = arrived
        self.closed = False

    @property
    def readable(self) -> bool:
        return bool(self.arrived)

    def getsockopt(self, option: int) -> int:
        """Return the events (`zmq.EVENTS`) or a descriptor that nobody waits on (`zmq.FD`)."""
        return zmq.POLLIN * self.readable if option == zmq.EVENTS else -1

    def poll(self, timeout_ms: int) -> int:
        """Wait for messages as a process of the history; return whether there are some."""
        if not self.readable:
            CURRENT.process.rest(timeout_ms)
        return int(self.readable)

    def disable_monitor(self) -> None: ...

    def close(self, linger: int = 0) -> None:
        self.closed = True


class SimulatedLink:
    """Stands for `Link` between stages."""

    def __init__(self, channel: Channel, party: Party, peer: Party) -> None:
        self.rejected = 0
        self._channel, self._party = channel, party
        self._arrived = channel.wires[peer].arrived
        self.socket = SimulatedSocket(self._arrived)

    @classmethod
    def pair(cls, context: Any, run_dir: str, party: Party, peer: Party, decoder: Any) -> SimulatedLink:
        """Return the end of `party` of its link to `peer`."""
        channel = CURRENT.world.channel(party, peer)
        link = cls(channel, party, peer)  # type: ignore[arg-type]
        channel.open(party, link)  # type: ignore[arg-type]
        return link

    def send(self, message: Message) -> None:
        self._channel.send(self._party, ENCODER.encode(message))

    def receive(self, limit: int = 1000) -> list[Any]:
        messages = list(self._arrived)
        self._arrived.clear()
        return messages

    def require_whole(self) -> None:
        """Raise LinkCut as the real one does."""
        if self._channel.joined_again and self._party == self._channel.parties[0]:
            raise LinkCut(f"the connection of {name_of(self._party)} broke")

    def close(self, linger_ms: int = 0) -> None:
        self.socket.closed = True
        self._channel.close(self._party, len(self._channel.wires[self._party].under_way))


class ControlLink:
    """A stage's link to the supervisor; it dies with the stage."""

    def __init__(self, party: Party, wire_up: Wire, wire_down: Wire) -> None:
        self.rejected = 0
        self._up, self._down = wire_up, wire_down
        self.socket = SimulatedSocket(wire_down.arrived)

    def send(self, message: Message) -> None:
        self._up.carry(ENCODER.encode(message))

    def receive(self, limit: int = 1000) -> list[Any]:
        messages = list(self._down.arrived)
        self._down.arrived.clear()
        return messages

    def close(self, linger_ms: int = 0) -> None: ...


class RouterSocket(SimulatedSocket):
    """The inbox of a router: (identity, message)."""

    def __init__(self) -> None:
        super().__init__(deque())


class ClientRouter:
    """Stands for the scheduler's `Router` to clients, whose connections come and go."""

    def __init__(self, context: Any, address: str, decoder: Any, high_water: int = 0) -> None:
        self.dropped = self.rejected = 0
        self.high_water = high_water
        self.socket = RouterSocket()
        self.wires: dict[bytes, Wire] = {}
        """By identity, to the clients that are connected."""
        CURRENT.world.open_router(self)  # type: ignore[arg-type]

    def receive(self, limit: int = 1000) -> list[tuple[bytes, msgspec.Raw | Unreadable]]:
        received = list(self.socket.arrived)
        self.socket.arrived.clear()
        return received

    def deliver(self, identity: bytes, message: Message) -> Delivery:
        wire = self.wires.get(identity)
        if wire is None:
            self.dropped += 1
            return "gone"
        wire.carry(ENCODER.encode(message))
        return "sent"

    def check_room(self) -> None: ...

    def close(self, linger_ms: int = 0) -> None:
        """Close; what was sent still goes out."""
        CURRENT.world.close_router(self, keep=None)  # type: ignore[arg-type]


def name_of(party: Party) -> str:
    """Return a party as scripts call it."""
    return f"{party.stage}.{party.epoch}"
