"""Folders of keys: private, never overwritten, and of use only whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.stage.logs import LogSpec
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.remote.front import RemoteFront
from expertflow.runtime.remote.keys import (
    AllowedKeys,
    allow_key,
    new_client_keys,
    new_keys,
    read_client_keys,
    read_public_key,
    read_server_pair,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folders = new_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    for folder, name in zip(folders, ("server", "client"), strict=True):
        assert mode_of(folder) == 0o700 and mode_of(folder / f"{name}.key_secret") == 0o600
        secret = (folder / f"{name}.key_secret").read_text().partition("secret-key")[2].split('"')[1]
        assert len(secret) == 40
        public = [file for file in (tmp_path / "keys").rglob("*.key")]
        assert len(public) == 4 and all(secret not in file.read_text() for file in public)


def test_both_ends_fit_together(tmp_path: Path) -> None:
    server, client = new_keys(tmp_path)
    keys, pair = read_client_keys(client), read_server_pair(server)
    assert keys.server == pair.public
    assert AllowedKeys(server).name_of(keys.own.public) == "client"
    assert AllowedKeys(server).name_of(pair.public) is None
    assert keys.own.secret.decode() not in repr(keys) and pair.secret.decode() not in repr(pair)


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    server, _ = new_keys(tmp_path)
    before = read_server_pair(server)
    with pytest.raises(UsageError, match="is there already"):
        new_keys(tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        allow_key(server, server / "server.key", "client")
    assert read_server_pair(server) == before


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    server, client = new_keys(tmp_path)
    for folder, read in ((server, read_server_pair), (client, read_client_keys)):
        next(folder.glob("*.key_secret")).chmod(0o640)
        with pytest.raises(UsageError, match="can be read by others") as caught:
            read(folder)
        assert "chmod 600" in caught.value.remedy


def test_a_folder_that_others_can_enter_gets_no_secret(tmp_path: Path) -> None:
    shared = tmp_path / "server"
    shared.mkdir(mode=0o755)
    with pytest.raises(UsageError, match="not yours alone"):
        new_keys(tmp_path)
    assert not list(shared.iterdir())


def test_only_the_public_half_of_a_file_is_copied(tmp_path: Path) -> None:
    """Whoever hands in the file of both keys has not given the secret away."""
    server, client = new_keys(tmp_path)
    place = allow_key(server, client / "client.key_secret", "whole")
    assert "secret" not in place.read_text()
    assert read_public_key(place) == read_client_keys(client).own.public


@pytest.mark.parametrize(
    "content", [b"", b"public-key = abc", b'public-key = "' + b"~" * 40 + b'"', b"\xff" * 100, b"a" * 20_000]
)
def test_what_is_no_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    server, _ = new_keys(tmp_path)
    wrong = tmp_path / "wrong.key"
    wrong.write_bytes(content)
    for use in (
        lambda: allow_key(server, wrong, "wrong"),
        lambda: new_client_keys(tmp_path / "other", wrong),
        lambda: read_public_key(tmp_path / "none.key"),
    ):
        with pytest.raises(UsageError, match="cannot be used as a key"):
            use()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["", "../client", ".hidden", "a/b", "a" * 65, "ä"])
def test_names_of_clients_are_names_of_files(tmp_path: Path, name: str) -> None:
    server, client = new_keys(tmp_path)
    with pytest.raises(UsageError, match="is no name for a key"):
        allow_key(server, client / "client.key", name)


def test_a_damaged_key_that_comes_later_lets_nobody_out(tmp_path: Path) -> None:
    server, client = new_keys(tmp_path)
    allowed = AllowedKeys(server)
    (server / "allowed" / "damaged.key").write_text("nothing")
    assert allowed.refresh() and not allowed.refresh()
    assert allowed.name_of(read_client_keys(client).own.public) == "client"


def test_a_server_without_keys_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs keys") as caught:
        RemoteFront("tcp://127.0.0.1:0", None, LogSpec())
    assert "expertflow keys new" in caught.value.remedy
    server, client = new_keys(tmp_path)
    (server / "allowed" / "client.key").unlink()
    with pytest.raises(UsageError, match="allows no client's key"):
        RemoteFront("tcp://127.0.0.1:0", server, LogSpec())
    with pytest.raises(UsageError, match="cannot be used as a key"):
        RemoteFront("tcp://127.0.0.1:0", client, LogSpec())


def test_the_command_makes_all_that_two_machines_need(tmp_path: Path) -> None:
    keys, other = str(tmp_path / "keys"), str(tmp_path / "other")
    assert parse(["keys", "new", keys]).run() == 0
    assert parse(["keys", "client", other, f"{keys}/server/server.key"]).run() == 0
    assert parse(["keys", "allow", f"{keys}/server", f"{other}/client.key", "--name", "ada"]).run() == 0
    allowed = AllowedKeys(tmp_path / "keys" / "server")
    assert allowed.name_of(read_client_keys(tmp_path / "other").own.public) == "ada"
    with pytest.raises(UsageError, match="needs the file"):
        parse(["keys", "client", str(tmp_path / "third")]).run()
