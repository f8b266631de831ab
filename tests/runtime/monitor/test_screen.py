"""The screen of `top`: fits its terminal, drops columns in the stated order, and obeys nothing that clients wrote."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from expertflow.runtime.monitor.blocks import bar, bin_map, resample, shade, sparkline
from expertflow.runtime.monitor.live_screen import LiveScreen, split_keys
from expertflow.runtime.monitor.screen import PAGES, Size, screen, stage_columns
from expertflow.tests.runtime.monitor.made_views import views_after
from msgspec import structs
from rich.console import Console


def drawn(page: str, width: int, height: int = 40, **texts: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, highlight=False)
    console.print(screen(views_after(30, **texts), page, Size(width, height)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal_or_wraps(page: str, width: int) -> None:
    lines = drawn(page, width, request_id="x" * 300, user="y" * 300)
    assert max(len(line) for line in lines) <= width and len(lines) <= 40
    if page == "overview":
        text = "\n".join(lines)
        assert "hits 75 %" in text and "predicted too late" in text and "Experts in memory: 400 of 1,200" in text
        assert [line.split()[0] for line in lines[3:8]] == ["compute", "loader", "predictor", "scheduler", "supervisor"]


def test_columns_drop_out_in_the_stated_order() -> None:
    everything = set(stage_columns(200))
    gone: list[str] = []
    for width in range(200, 40, -1):
        for name in everything - set(stage_columns(width)) - set(gone):
            gone.append(name)
    assert gone == ["busy trend", "restarts", "memory", "trend", "queue"]
    assert stage_columns(20) == ["stage", "throughput", "busy", "waits for"]


def test_a_terminal_obeys_no_client() -> None:
    """A request may be called anything: an escape sequence in its id would paint over the screen."""
    lines = drawn("requests", 80, request_id="\x1b[2J\x07[red]id", user="[bold]\r\nboss")
    assert "?[2J?[red]id" in "\n".join(lines) and "[bold]??boss" in "\n".join(lines)
    assert not any(character in line for line in lines for character in "\x1b\x07\r")


@pytest.mark.parametrize("page", PAGES)
def test_a_terminal_obeys_no_bundle(page: str) -> None:
    """A stranger may have written the names of the engine, its stages and what they wait for."""
    evil = "\x1b[2Jloader"
    view = views_after(30, user="ann")
    lines = [structs.replace(line, stage=evil, waiting_on=evil) for line in view.reading.stages]
    reading = structs.replace(view.reading, stages=lines)
    waits = structs.replace(view.waits, reasons={evil: 1}, meanings={evil: evil}, longest=[evil])
    view = structs.replace(view, engine=evil, down=[evil], reading=reading, waits=waits)
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(screen(view, page, Size(200, 60)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "?[2Jloader" in text and "\x1b" not in text


def test_what_does_not_fit_the_height_is_left_out() -> None:
    assert len(drawn("overview", 80, 12)) <= 12
    assert len(drawn("overview", 80, 100)) > len(drawn("overview", 80, 24))


def test_a_stage_that_died_is_named_at_the_top() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(screen(views_after(3, {"loader": 1}), "overview", Size(80, 40)))
    assert isinstance(console.file, io.StringIO)
    assert "loader has ended and is started again" in console.file.getvalue()
    assert "its restart" in console.file.getvalue()


def test_keys_turn_the_pages() -> None:
    shown = LiveScreen(Console(width=80))
    assert split_keys("\tq\x1b[C") == ["\t", "q", "\x1b[C"]
    assert [shown.on_key(key) for key in ("\t", "x", "1")] == [True, False, False]
    for key in ("\x1b[D", "\x1b[D"):
        shown.on_key(key)
    assert PAGES[shown._page] == "waits"


def test_blocks() -> None:
    assert sparkline([0, None, 4, 8], 6) == "  ▁ ▅█" and sparkline([], 3) == "   "
    assert sparkline([1, 2], 2, top=8.0) == "▂▃"
    assert (bar(0.5, 4), bar(2, 2), bar(0, 2), bar(0.3125, 2)) == ("██  ", "██", "  ", "▋ ")
    assert resample([1, 3, None, 5, None, None], 3) == [2, 5, None] and resample([1], 3) == [1]
    assert "".join(map(shade, (0, 0.1, 0.5, 0.9, 1))) == "·░▒▓█"


def test_bins_are_means() -> None:
    values = np.arange(12).reshape(3, 4)
    assert bin_map(values, 9, 9).tolist() == values.tolist()
    assert bin_map(values, 9, 2).tolist() == [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    assert bin_map(values, 1, 2).tolist() == [[4.5, 6.5]]
    assert bin_map(np.ones((61, 257)), 8, 50).tolist() == np.ones((8, 50)).tolist()
