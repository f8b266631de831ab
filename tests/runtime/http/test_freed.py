"""What a reply held is freed at its end, and not only when Python looks for circles of references.

Circles grow until there are as many as a quarter of everything else, so memory of a busy server goes up and down.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from expertflow.runtime.client.request import ClientRequest
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.local_server import LocalServer, events


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def requests_alive() -> int:
    """Return how many requests of the server's client are in memory."""
    return sum(type(each) is ClientRequest for each in gc.get_objects())


@pytest.mark.usefixtures("no_collection")
def test_requests_of_a_body_are_freed_at_its_end(server: LocalServer) -> None:
    before = requests_alive()
    for _ in range(3):
        assert server.completion(ignore_eos=True, n=2).status == 200
    wait_until(lambda: requests_alive() == before)


@pytest.mark.usefixtures("no_collection")
def test_requests_of_a_stream_are_freed_at_its_end(server: LocalServer) -> None:
    before = requests_alive()
    for _ in range(3):
        with server.stream(ignore_eos=True, n=2) as response:
            assert list(events(response))[-1] == "[DONE]"
    wait_until(lambda: requests_alive() == before)


@pytest.mark.usefixtures("no_collection")
def test_requests_whose_client_hangs_up_are_freed(server: LocalServer) -> None:
    before = requests_alive()
    for _ in range(3):
        with server.stream(ignore_eos=True, max_tokens=40) as response:
            assert next(events(response))
    wait_until(lambda: requests_alive() == before)
