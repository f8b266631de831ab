"""The page's files and its stream of events, without a browser."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

from expertflow.runtime.http.spec import Loading
from expertflow.runtime.page.files import FOLDER, INDEX
from expertflow.runtime.page.live_feed import MAX_PAGES
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.local_server import LocalServer


def test_files_come_with_headers_that_allow_nothing_else() -> None:
    with LocalServer(None) as server:
        for path in ["/", *(f"/page/{file.name}" for file in FOLDER.iterdir())]:
            answer = server.get(path)
            assert answer.status == 200 and answer.body, path
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"
        assert server.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
        for path in ("/page/", "/page/none.js", "/page/../files.py", "/page/%2e%2e/files.py", "/page//etc/passwd"):
            assert server.get(path).status == 404, path


def test_the_page_names_no_other_place_and_runs_no_text() -> None:
    """The policy would stop it; a reader of the source must not have to trust that."""
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) == []
    page = (FOLDER / INDEX).read_text()
    assert re.findall(r"<script(?![^>]* src=)|\son\w+=|\sstyle=", page) == []
    assert set(re.findall(r"for=\"([\w-]+)\"", page)) <= set(re.findall(r"id=\"([\w-]+)\"", page))


def test_a_page_that_is_opened_early_sees_the_start() -> None:
    with LocalServer(None) as server:
        server.tell(Loading("compute: reading weights", 1, 4))
        with server.watch() as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.readline() == b"event: now\n"
            told = json.loads(response.readline().removeprefix(b"data: "))
        assert told == {"state": "loading", "phase": "compute: reading weights", "percent": 25.0}
        wait_until(lambda: not server.link.feed.is_polling)


def test_the_number_of_open_pages_is_bounded() -> None:
    with LocalServer(None) as server, ExitStack() as stack:
        for _ in range(MAX_PAGES):
            assert stack.enter_context(server.watch()).status == 200
        answer = server.get("/watch/events")
        assert (answer.status, answer.error["code"]) == (503, "too_many_pages")


def test_open_pages_do_not_hold_up_the_end_of_the_server() -> None:
    with LocalServer(None) as server, server.watch() as response:
        response.readline()
        server.stop()
