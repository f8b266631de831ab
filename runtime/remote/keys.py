"""Folders of CURVE keys, in pyzmq's certificate files.

A server's folder has its own pair, and in `allowed/` the public keys of its clients. A client's folder has its own pair
and the public key of its server. Secret keys are readable by their owner alone.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from ...errors import UsageError

SERVER, CLIENT, ALLOWED = "server", "client", "allowed"
PUBLIC_END, SECRET_END = ".key", ".key_secret"
MAX_FILE_BYTES = 10_000
MAX_ALLOWED = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAKE = "Make keys with: expertflow keys new FOLDER"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, each 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """Keys with which a client connects: its own pair, and the public key of the server."""

    own: KeyPair
    server: bytes


def new_keys(folder: Path) -> list[Path]:
    """Make a server's folder `server` and that of a first client, `client`, in `folder`; return both.

    Raises UsageError if there are keys already, or if they cannot be written.
    """
    server, client = folder / SERVER, folder / CLIENT
    _make_pair(server, SERVER)
    _make_private(server / ALLOWED)
    new_client_keys(client, server / f"{SERVER}{PUBLIC_END}")
    allow_key(server, client / f"{CLIENT}{PUBLIC_END}", CLIENT)
    return [server, client]


def new_client_keys(folder: Path, server: Path) -> Path:
    """Make a client's folder for the server with the public key in the file `server`; return its public key's file.

    Raises UsageError as `new_keys`, and for a file without a key.
    """
    read_public_key(server)
    _make_pair(folder, CLIENT)
    _copy(server, folder / f"{SERVER}{PUBLIC_END}")
    return folder / f"{CLIENT}{PUBLIC_END}"


def allow_key(folder: Path, public: Path, name: str) -> Path:
    """Let the server of `folder` accept the public key in a file, under a name; return the file that says so.

    Raises UsageError for a file without a key, a name that no file can have, and one that is taken.
    """
    read_public_key(public)
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a key", "--name", "Use letters, digits and .-_@")
    if not (folder / ALLOWED).is_dir():
        raise UsageError("is no folder of a server's keys", str(folder), _MAKE)
    place = folder / ALLOWED / f"{name}{PUBLIC_END}"
    _copy(public, place)
    return place


def read_server_pair(folder: Path) -> KeyPair:
    """Return the pair of a server's folder. Raises UsageError, also if others can read its secret."""
    return _read_pair(folder, SERVER)


def read_client_keys(folder: Path) -> ClientKeys:
    """Return the keys of a client's folder. Raises UsageError, also if others can read its secret."""
    return ClientKeys(_read_pair(folder, CLIENT), read_public_key(folder / f"{SERVER}{PUBLIC_END}"))


def read_public_key(file: Path) -> bytes:
    """Return the public key in a file. Raises UsageError if there is none."""
    return _read(file)[0]


class AllowedKeys:
    """Public keys that a server accepts, read again whenever their folder has changed; a key is its name's no more
    when its file is removed."""

    def __init__(self, folder: Path) -> None:
        """Read the keys of a server's folder. Raises UsageError if a file has no key."""
        self._folder = folder / ALLOWED
        self._stamp = _stamp(self._folder)
        self._names = self._read()

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a public key (Z85), None for one that is not allowed."""
        return self._names.get(key)

    def refresh(self) -> bool:
        """Read the folder again if it has changed; return whether it had. A file that is no key is left out."""
        stamp = _stamp(self._folder)
        if stamp == self._stamp:
            return False
        self._stamp, self._names = stamp, self._read(strict=False)
        return True

    def _read(self, strict: bool = True) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for file in sorted(self._folder.glob(f"*{PUBLIC_END}"))[:MAX_ALLOWED]:
            try:
                names[read_public_key(file)] = file.name.removesuffix(PUBLIC_END)
            except UsageError:
                if strict:
                    raise
        return names


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def _read_pair(folder: Path, name: str) -> KeyPair:
    file = folder / f"{name}{SECRET_END}"
    public, secret = _read(file)
    if secret is None:
        raise UsageError("has no secret key", str(file), _MAKE)
    if file.stat().st_mode & 0o077:
        raise UsageError("can be read by others", str(file), f"Make it yours alone: chmod 600 {file}")
    return KeyPair(public, secret)


def _read(file: Path) -> tuple[bytes, bytes | None]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        public, secret = load_certificate(file)
        for key in (public, secret):
            if key is not None and (len(key) != 40 or len(z85.decode(key)) != 32):
                raise ValueError("its key is damaged")
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it holds no key"
        raise UsageError(f"cannot be used as a key: {reason}", str(file), _MAKE) from error
    return public, secret


def _make_pair(folder: Path, name: str) -> None:
    """Write a new pair into a private folder, so that the secret is never readable, not even before its mode is set."""
    secret = folder / f"{name}{SECRET_END}"
    _make_private(folder)
    if secret.exists():
        raise UsageError("is there already", str(secret), "Name another folder; remove this one to make new keys")
    try:
        create_certificates(folder, name)
        secret.chmod(0o600)
        (folder / f"{name}{PUBLIC_END}").chmod(0o644)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(folder), "Name a folder of yours") from error


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o077:
            raise UsageError("is not yours alone", str(folder), f"Name another folder, or: chmod 700 {folder}")
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", str(folder), "Name a folder of yours") from error


def _copy(public: Path, place: Path) -> None:
    """Write the public key of a file to a new file; what else the file holds, perhaps a secret, is left behind."""
    text = f'metadata\ncurve\n    public-key = "{read_public_key(public).decode()}"\n'
    try:
        with place.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UsageError("is there already", str(place), "Choose another name, or remove the file") from error
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(place), "Name a folder of yours") from error
