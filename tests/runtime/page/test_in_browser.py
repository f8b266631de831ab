"""The page in a real Chromium, before a real engine with the built-in model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import expertflow
import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.bundle.file import write_bundle
from expertflow.runtime.client.batch import Batch
from expertflow.tests.runtime.bundle.made import made_bundle
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.local_server import LocalServer
from expertflow.tests.runtime.page.browser import FOCUSABLE, FOCUSED, Browser
from selenium.webdriver.common.keys import Keys

MODEL = Path(expertflow.__file__).resolve().parent / "examples" / "model"
SEEN_S = 2.0
"""Time within which the death of a stage is on the page."""
RESTARTED_S = 120.0
"""Bound for the restart of compute on a busy machine: it imports torch."""
MARKUP = "<img src=x onerror=window.injected=1><script>window.injected=1</script>"
STAGES = ["scheduler", "predictor", "loader", "compute"]


@pytest.fixture(scope="module")
def engine(runtime_base: Path) -> Iterator[Supervisor]:
    config = Config(model=str(MODEL), expert_memory="30%", compute_threads=1, batch_size=4)
    with Supervisor(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Supervisor) -> Iterator[LocalServer]:
    with LocalServer(engine.address, name=MARKUP) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, server: LocalServer) -> Iterator[Browser]:
    """The page, with figures on it; afterwards no error was in the console, and no request went elsewhere."""
    browser.set_width(1280)
    browser.set_media(prefers_color_scheme="light")
    browser.open("about:blank")
    browser.requested()
    browser.open(server.url.removesuffix("v1"))
    browser.await_text("#state", "running")
    wait_until(lambda: browser.count("#pipeline .stage") == len(STAGES))
    yield browser
    assert browser.complaints() == []
    origin = server.url.removesuffix("/v1")
    assert {url for url in browser.requested() if not url.startswith((origin, "data:"))} == set()
    browser.open("about:blank")


@pytest.fixture
def work(engine: Supervisor) -> Iterator[Batch]:
    """Requests of a user whose name is markup."""
    with Client(engine.address) as client:
        batch = client.submit(["The history of", "A river"] * 4, 480, eos_ids=[], user=MARKUP, seed=1)
        yield batch
        batch.cancel()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Engine and browser are those of the module."""


def test_figures_come_and_change(page: Browser, work: Batch) -> None:
    wait_until(lambda: page.text("#speed") not in ("–", "0.0"))
    first = page.text("#speed")
    wait_until(lambda: page.text("#speed") != first)
    wait_until(lambda: page.count("#steps rect") > 4 and page.count("#why tr") > 0)
    titles = "return [...document.querySelectorAll('.stage h3')].map((title) => title.firstChild.textContent)"
    assert page.run(titles) == STAGES
    assert "of 192 experts are in memory" in page.text("#heat-text")
    assert "waited for experts for" in page.text("#why-text") and "median" in page.text("#steps-text")
    assert page.text(".stage:nth-child(4) .rate").endswith("tokens/s") and page.count(".chart path") == 10
    page.click("#heat-toggle")
    wait_until(lambda: page.count("#heat-table tr") == 6)
    assert "of 32" in page.text("#heat-table tr") and "%" in page.text("#heat-table td:last-child")


def test_texts_of_clients_stay_texts(page: Browser, work: Batch) -> None:
    """Names of models and users, and prompts, come from anybody."""
    wait_until(lambda: page.text("#requests td:last-child") == MARKUP)
    assert page.text("#model") == MARKUP
    page.run("document.querySelector('#say').value = arguments[0]", MARKUP)
    page.run("document.querySelector('#max-tokens').value = 4")
    work.cancel()
    page.click("#send")
    wait_until(lambda: page.text(".turn.model") and not page.run("return document.querySelector('#send').disabled"))
    assert page.text(".turn.user") == MARKUP and page.count(".turn.error") == 0
    assert page.run("return window.injected") is None and page.count("img[src='x']") == 0


def test_a_killed_stage_is_seen_within_two_seconds(page: Browser, engine: Supervisor) -> None:
    """And told to a screen reader, once; so is its return."""
    assert page.text("#news") == "running"
    killed_s = time.monotonic()
    engine.kill("compute")
    wait_until(lambda: page.run("return document.querySelector('#state').dataset.state") == "down")
    assert time.monotonic() - killed_s < SEEN_S
    assert page.text("#news") == "compute has ended, restarting"
    page.await_text(".stage[data-down='true'] .wait", "has ended and is started again")
    wait_until(lambda: page.text("#news") == "running", RESTARTED_S)


def test_every_control_is_reached_by_the_keyboard_in_order(page: Browser) -> None:
    expected = page.run(FOCUSABLE)
    assert len(expected) >= 10
    reached: list[str] = []
    for _ in expected:
        page.press(Keys.TAB)
        name, is_visible = page.run(FOCUSED)
        assert is_visible, f"nothing shows that {name} has the focus"
        reached.append(name)
    assert reached == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_legible(page: Browser, scheme: str, work: Batch) -> None:
    page.set_media(prefers_color_scheme=scheme)
    wait_until(lambda: page.count("#why tr") > 0 and page.count("#requests tr") > 0)
    found = page.contrasts()
    assert len(found) > 60 and [pair for pair in found if pair[0] < 4.5] == []
    dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 360, 768, 1600])
def test_it_fits_narrow_and_wide_windows(page: Browser, width: int, work: Batch) -> None:
    """320 is a window of 1280 at 400 %."""
    page.set_width(width)
    wait_until(lambda: page.count("#requests tr") > 0 and page.count("#steps rect") > 0 and page.count("#why tr") > 0)
    inner, outer = page.run("""
      document.querySelector("#why td").lastChild.textContent = "evicted for a wrong prediction";
      const html = document.documentElement; return [html.scrollWidth, html.clientWidth]""")
    assert inner == outer and width - 20 <= outer <= width, "only a bar for vertical scrolling takes room"
    outside = """return [...document.querySelectorAll("section, section > *")].filter((node) => node.checkVisibility()
      && node.getBoundingClientRect().right > document.documentElement.clientWidth).length"""
    assert page.run(outside) == 0


def test_the_reader_chooses_colours_and_calm(page: Browser) -> None:
    page.click("#theme")
    assert page.run("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.open(page.driver.current_url)
    page.await_text("#theme", "Light")
    page.click("#theme")
    assert page.run("return getComputedStyle(document.documentElement).colorScheme") == "light"
    moving = "return getComputedStyle(document.querySelector('.meter i')).transitionDuration"
    wait_until(lambda: page.count(".meter i"))
    assert page.run(moving) == "0.3s"
    page.set_media(prefers_reduced_motion="reduce")
    assert page.run(moving) == "0s"
    page.run("localStorage.clear()")


def test_the_last_hour_can_be_looked_back_at(page: Browser) -> None:
    """By the keyboard: the figures beside the charts are those of the moment that was chosen."""
    wait_until(lambda: page.text("#look-time") == "now")
    page.run("document.querySelector('#look').focus()")
    page.press(*[Keys.PAGE_DOWN] * 5)
    assert page.text("#look-time").count(":") == 2 and page.count(".chart .cursor") == 6
    label = page.run("return document.querySelector('.chart svg').getAttribute('aria-label')")
    assert label.startswith("Tokens a second: output ")


def test_a_server_with_keys_shows_nothing_without_one(browser: Browser, engine: Supervisor) -> None:
    with LocalServer(engine.address, keys=["secret"]) as server:
        assert server.get("/watch/events").status == 401 and server.get("/").status == 200
        browser.open(server.url.removesuffix("v1"))
        browser.await_text("#state", "waiting for a key")
        for key in ("wrong", "secret"):
            wait_until(lambda: browser.run("return document.activeElement.id") == "key")
            browser.run("document.querySelector('#key').value = ''")
            browser.press(key, Keys.ENTER)
            if key == "wrong":
                browser.await_text("#key-error", "That key is wrong")
                assert browser.text("#model") == "" and browser.count("#pipeline .stage") == 0
        browser.await_text("#state", "running")
        assert browser.run("return document.querySelector('#key-form').hidden")
    browser.await_text("#state", "connection lost")
    browser.open("about:blank")
    browser.complaints()


def test_a_bundle_is_shown_in_place_of_the_live_engine(page: Browser, tmp_path: Path) -> None:
    file = tmp_path / "engine.zip"
    write_bundle(file, made_bundle())
    page.driver.find_element("id", "bundle").send_keys(str(file))
    page.await_text("#bundle-name", "engine.zip: the engine as it was on 30/11/2026")
    assert page.text("#speed") == "19.0" and page.count("#requests tr") == 30
    assert "of 1,200 experts" in page.text("#heat-text") and page.count("#steps g") == 1
    page.click("#bundle-close")
    page.await_text("#heat-text", "of 192 experts")
    file.write_text("nonsense")
    page.driver.find_element("id", "bundle").send_keys(str(file))
    page.await_text("#bundle-error", "is no bundle")
    assert "400 (Bad Request)" in page.complaints()[0]


def test_a_page_too_many_is_told_so(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertflow.runtime.page.live_feed.MAX_PAGES", 0)
    with LocalServer(None) as server:
        browser.open(server.url.removesuffix("v1"))
        browser.await_text("#state", "Too many pages are open")
        monkeypatch.undo()
        browser.await_text("#state", "loading")
    browser.open("about:blank")
    browser.complaints()


def test_a_hidden_page_asks_for_nothing(page: Browser, server: LocalServer) -> None:
    """A browser has six connections to a server: pages in the background would keep the seventh from loading."""
    assert server.link.feed.is_polling
    page.driver.switch_to.new_window("tab")
    wait_until(lambda: not server.link.feed.is_polling)
    page.driver.close()
    page.driver.switch_to.window(page.driver.window_handles[0])
    wait_until(lambda: server.link.feed.is_polling)


def test_pages_share_one_poll_that_ends_with_the_last(server: LocalServer, engine: Supervisor) -> None:
    """I7: however many look, the engine is asked once a second; when nobody looks, not at all."""
    feed = server.link.feed
    wait_until(lambda: not feed.is_polling)
    with server.watch() as one, server.watch() as other:
        lines = [response.readline() for response in (one, other) for _ in range(12)]
        assert lines.count(b"event: history\n") == 2
        assert feed._pages == 2 and feed.is_polling
    wait_until(lambda: not feed.is_polling)
    assert feed._pages == 0
