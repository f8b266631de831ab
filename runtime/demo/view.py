"""Texts while they grow: all of them live on a terminal, else each one when it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text as Styled

from .texts import Text, Texts

FRAMES_PER_S = 10


class TextView(ABC):
    """A context manager; `show` is called whenever a text has grown, `say` with news about the engine."""

    def __enter__(self) -> TextView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def show(self, texts: Texts, grown: Text) -> None: ...

    @abstractmethod
    def say(self, news: str) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """What was shown stays."""


class _LiveView(TextView):
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=FRAMES_PER_S, vertical_overflow="crop")

    def __enter__(self) -> TextView:
        self._live.start()
        return self

    def show(self, texts: Texts, grown: Text) -> None:
        self._live.update(text_table(texts))

    def say(self, news: str) -> None:
        self._live.console.print(news)

    def close(self) -> None:
        self._live.stop()


class _LineView(TextView):
    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0

    def show(self, texts: Texts, grown: Text) -> None:
        if grown.done:
            self._done += 1
            line = f"[{self._done}/{len(texts.all)}] {grown.prompt} →{_flat(grown.text)}"
            self._console.print(line, soft_wrap=True)

    def say(self, news: str) -> None:
        self._console.print(news, soft_wrap=True)

    def close(self) -> None:
        """Lines stay."""


def make_view(console: Console) -> TextView:
    return _LiveView(console) if console.is_terminal else _LineView(console)


def text_table(texts: Texts) -> Table:
    """A row for each text: tokens, the prompt dim, what came of it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for text in texts.all:
        table.add_row(str(text.tokens), Styled.assemble((text.prompt, "dim"), _flat(text.text)))
    return table


def _flat(text: str) -> str:
    """On one line: a text of verses would fill the screen."""
    return text.replace("\n", " ")
