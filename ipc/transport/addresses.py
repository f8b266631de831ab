"""Addresses of the sockets in the run directory; a pair's address contains the epochs of both ends (R8)."""

from __future__ import annotations

from typing import NamedTuple

CLIENTS = "clients"
CONTROL = "control"
MONITOR = "monitor"


class Party(NamedTuple):
    """One start of a stage: another start has another epoch and so another address."""

    stage: str
    epoch: int

    @property
    def identity(self) -> bytes:
        """Return the socket identity, `STAGE.EPOCH`."""
        return f"{self.stage}.{self.epoch}".encode()

    @classmethod
    def from_identity(cls, identity: bytes) -> Party | None:
        """Return the party that a socket identity names; None for other bytes."""
        stage, _, epoch = identity.decode("ascii", "replace").partition(".")
        return cls(stage, int(epoch)) if epoch.isascii() and epoch.isdigit() else None


def socket_address(run_dir: str, name: str) -> str:
    """Return the ZeroMQ address of the socket `name` in the run directory."""
    return f"ipc://{run_dir}/{name}"


def pair_address(run_dir: str, one: Party, other: Party) -> str:
    """Return the address of the link between two parties, the same from either end."""
    first, second = sorted((one, other))
    return socket_address(run_dir, f"{first.stage}.{first.epoch}-{second.stage}.{second.epoch}")
