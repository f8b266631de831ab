"""Users of the server: they take turns at the engine, and none of them fills its queue alone."""

from __future__ import annotations

import hashlib

from starlette.requests import Request

RESERVE = 8
"""One part in so many of the queue is kept from each user, for all others."""


def user_of(request: Request, has_keys: bool, salt: bytes) -> str:
    """Return a name for the sender: a digest of the key that was sent, with a salt of this start of the server.

    Watchers see names, and must not find a weak key by trying. A server without keys takes any word for one (clients
    send one, whether asked or not) and adds the address.
    """
    key = request.headers.get("authorization", "").partition(" ")[2].strip()
    address = "" if has_keys or request.client is None else request.client.host
    return hashlib.blake2b(f"{address} {key}".encode(), key=salt, digest_size=8).hexdigest()


def share_of(limit: int) -> int:
    """Return how many of `limit` places in the queue one user may have."""
    return limit - limit // RESERVE
