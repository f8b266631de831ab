"""The address of an engine, the ways there (its run directory, or TCP with keys), and what shows that it runs."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import zmq

from ...errors import EngineError, UsageError
from ...ipc.shared.rundir import engines_of, is_group
from ...ipc.transport.addresses import CLIENTS, socket_address
from ...ipc.transport.sockets import Context, Socket, open_socket
from ..remote.curve import SCHEME, open_client_socket
from ..remote.keys import ClientKeys, read_client_keys

Address = str | os.PathLike[str]


class Route(Protocol):
    """The way to one engine."""

    @property
    def address(self) -> str:
        """Return the address, as errors name it."""
        ...

    def open(self, context: Context) -> Socket:
        """Return a DEALER that is not connected yet."""
        ...

    def endpoint(self, name: str) -> str:
        """Return where it connects to for a socket of the engine: `CLIENTS` or `MONITOR`."""
        ...

    def prefix(self, name: str) -> bytes:
        """Return the frame before every message that says for which socket it is; empty: there is none."""
        ...

    def require_engine(self) -> None:
        """Raise EngineError if it is known that no engine runs there."""
        ...

    def require_alive(self) -> None:
        """Raise EngineError if it is known that the engine has ended."""
        ...


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """Through the run directory of an engine of this user and machine."""

    address: str

    def open(self, context: Context) -> Socket:
        """Return a DEALER that is not connected yet."""
        return open_socket(context, zmq.DEALER)

    def endpoint(self, name: str) -> str:
        """Return the address of a socket in the run directory."""
        return socket_address(self.address, name)

    def prefix(self, name: str) -> bytes:
        """Return no frame: each socket has a file of its own."""
        return b""

    def require_engine(self) -> None:
        """Raise EngineError unless an engine runs there; the address may be mistyped."""
        require_engine(self.address)

    def require_alive(self) -> None:
        """Raise EngineError unless a supervisor holds the lock of the run directory."""
        require_alive(self.address)


@dataclass(frozen=True, slots=True)
class RemoteRoute:
    """Over TCP, through the proxy of `expertflow serve --address tcp://...`."""

    address: str
    keys: ClientKeys = field(repr=False)

    def open(self, context: Context) -> Socket:
        """Return a DEALER that is not connected yet."""
        return open_client_socket(context, self.keys)

    def endpoint(self, name: str) -> str:
        """Return the address of the proxy, which is the same for every socket."""
        return self.address

    def prefix(self, name: str) -> bytes:
        """Return the name of the socket."""
        return name.encode()

    def require_engine(self) -> None:
        """Do nothing: only an answer shows that there is an engine."""

    def require_alive(self) -> None:
        """Do nothing: only silence shows that there is none any more."""


def routes_to(address: Address, keys: Address | None = None) -> tuple[list[Route], bool]:
    """Return the ways to the engines at an address, and whether they are a group's.

    `keys`: folder of the client's keys. Raises UsageError for an address or keys that cannot be used.
    """
    if is_remote(address):
        return [RemoteRoute(_remote_address(str(address)), _keys(keys))], False
    if keys is not None:
        raise UsageError(f"are for an engine over TCP, not for {os.fspath(address)}", "keys", "Leave them out")
    run_dir = Path(run_dir_of(address))
    return [LocalRoute(str(path)) for path in engines_of(run_dir)], is_group(run_dir)


def is_remote(address: object) -> bool:
    """Return whether an address is one over TCP."""
    return isinstance(address, str) and address.startswith(SCHEME)


def key_unknown(route: Route) -> EngineError:
    """Return the error of a client that the engine does not let in."""
    remedy = "Let its public key in at the engine: expertflow keys allow FOLDER FILE"
    return EngineError("does not know this client's key", route.address, remedy)


def silent_error(address: Address, timeout_s: float) -> EngineError:
    """Return the error of an engine that has not answered a client's greeting."""
    if not is_remote(address):
        return EngineError(f"no answer within {timeout_s} s", "scheduler", "Is the engine still starting?")
    remedy = "Check the address, and the server's key in the folder of keys; an ended engine does not answer either"
    return EngineError(f"gave no answer within {timeout_s:g} s", str(address), remedy)


def no_engine_left(address: Address) -> EngineError:
    """Return the error of a group in which no engine runs any more."""
    return EngineError("all engines of the group have ended", str(address), "Start them again")


def _remote_address(text: str) -> str:
    host, colon, port = text.removeprefix(SCHEME).rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536):
        raise UsageError(f"must be tcp://HOST:PORT, not '{text}'", "address", "Give what serve prints")
    return text


def _keys(folder: Address | None) -> ClientKeys:
    if folder is None:
        remedy = "Give the folder of your keys (--keys, Client(…, keys=…)); expertflow keys makes one"
        raise UsageError("needs keys, since it is over TCP", "address", remedy)
    return read_client_keys(Path(folder))


def run_dir_of(address: str | os.PathLike[str]) -> str:
    """Return the run directory of an address, which may be the client socket in that directory.

    Raises UsageError for anything but a path.
    """
    if not isinstance(address, (str, os.PathLike)) or not address:
        raise UsageError(f"must be a path, not {address!r}", "address", "Give Supervisor.address, or what serve prints")
    path = str(os.fspath(address)).removeprefix("ipc://")
    return os.path.dirname(path) if os.path.basename(path) == CLIENTS else path


def require_engine(run_dir: str) -> None:
    """Raise EngineError unless an engine runs at this address. The error says that the address may be mistyped."""
    try:
        require_alive(run_dir)
    except EngineError as error:
        if error.lacks_subject:  # it says more than that there is no engine
            raise
        remedy = "Check the address that `expertflow serve` prints; an engine that has ended has none"
        raise EngineError("no engine answers there", run_dir or "address", remedy) from error


def require_alive(run_dir: str) -> None:
    """Raise EngineError unless a supervisor of this user holds the lock of its run directory.

    In a folder that is everyone's, another user could make a directory where an engine's has been, and get the prompts.
    """
    remedy = "Start the engine again; its output says why it ended"
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError("the engine has ended", run_dir, remedy) from error
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise EngineError("belongs to another user", run_dir, "Run this as the user of the engine")
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise EngineError("the engine has ended", run_dir, remedy)
