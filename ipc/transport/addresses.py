"""Where sockets lie in the run directory; the epochs of both ends are part of a pair's address (R8)."""

from __future__ import annotations

from typing import NamedTuple

CLIENTS = "clients"
CONTROL = "control"
MONITOR = "monitor"


class Party(NamedTuple):
    """One start of a stage: another start has another epoch, so its messages go elsewhere."""

    stage: str
    epoch: int

    @property
    def identity(self) -> bytes:
        return f"{self.stage}.{self.epoch}".encode()

    @classmethod
    def from_identity(cls, identity: bytes) -> Party | None:
        """The party named by a socket identity; None for any other bytes."""
        stage, _, epoch = identity.decode("ascii", "replace").partition(".")
        return cls(stage, int(epoch)) if epoch.isascii() and epoch.isdigit() else None


def socket_address(run_dir: str, name: str) -> str:
    """The ZeroMQ address of the socket `name` in the run directory."""
    return f"ipc://{run_dir}/{name}"


def pair_address(run_dir: str, one: Party, other: Party) -> str:
    """The address of the link between two parties, the same from either end."""
    first, second = sorted((one, other))
    return socket_address(run_dir, f"{first.stage}.{first.epoch}-{second.stage}.{second.epoch}")
