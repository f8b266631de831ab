"""Names of the server's users: one for each key, and none that tells the key."""

from __future__ import annotations

from expertflow.runtime.http.users import user_of
from starlette.requests import Request

SALT, OTHER_SALT = b"one start", b"another"


def request_with(key: str, address: str = "10.0.0.1") -> Request:
    """A request from an address that sends a key."""
    headers = [(b"authorization", f"Bearer {key}".encode())]
    return Request({"type": "http", "headers": headers, "client": (address, 1)})


def test_a_key_has_one_name_wherever_it_comes_from() -> None:
    names = {user_of(request_with("a", address), True, SALT) for address in ("10.0.0.1", "10.0.0.2")}
    assert len(names) == 1 and names != {user_of(request_with("b"), True, SALT)}


def test_without_keys_an_address_is_a_user() -> None:
    assert user_of(request_with("a"), False, SALT) != user_of(request_with("a", "10.0.0.2"), False, SALT)


def test_another_start_names_the_same_key_otherwise() -> None:
    """A name that watchers see is of no use for trying keys."""
    assert user_of(request_with("a"), True, SALT) != user_of(request_with("a"), True, OTHER_SALT)
