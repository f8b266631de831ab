"""The texts of a run and their display: live on a terminal, else a line for each text that is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text as Styled

from ...ipc.messages import Progress
from ..client import Event
from ..monitor.progress import ProgressView

FRAMES_PER_S = 10


@dataclass
class Text:
    """One prompt and its output so far."""

    prompt: str
    text: str = ""
    tokens: int = 0
    done: bool = False


class Texts:
    """All texts of a run, in the order of the prompts."""

    def __init__(self, prompts: list[str]) -> None:
        self.all = [Text(prompt) for prompt in prompts]

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all texts."""
        return sum(text.tokens for text in self.all)

    def take(self, event: Event) -> Text:
        """Apply an event and return the text that has grown. Raises the error of a request that failed."""
        if event.error:
            raise event.error
        text = self.all[event.index]
        text.text += event.text_delta
        text.tokens += len(event.token_ids)
        text.done = event.finish_reason is not None
        return text


class TextView(ABC):
    """Display of the texts, a context manager."""

    def __enter__(self) -> TextView:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def start(self, count: int) -> None:
        """Show that `count` prompts run, before the first token."""

    @abstractmethod
    def show(self, texts: Texts, grown: Text) -> None:
        """Show that the text `grown` has new tokens."""

    @abstractmethod
    def notify(self, message: str) -> None:
        """Show a message about the engine."""

    @abstractmethod
    def close(self) -> None:
        """End the display; shown texts stay."""


class _LiveView(TextView):
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=FRAMES_PER_S, vertical_overflow="crop")

    def __enter__(self) -> TextView:
        self._live.start()
        return self

    def start(self, count: int) -> None:
        """Do nothing: the table appears with the first token."""

    def show(self, texts: Texts, grown: Text) -> None:
        self._live.update(text_table(texts))

    def notify(self, message: str) -> None:
        self._live.console.print(message)

    def close(self) -> None:
        self._live.stop()


class _LineView(TextView):
    """A line on stdout for each text that is done, and lines about the progress on stderr."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = 0
        self._progress: ProgressView | None = None

    def start(self, count: int) -> None:
        self._progress = ProgressView()
        self._progress(Progress("demo", f"{count:,} prompts", 0, count))

    def show(self, texts: Texts, grown: Text) -> None:
        if grown.done:
            self._done += 1
            if self._progress:
                self._progress(Progress("demo", f"{len(texts.all):,} prompts", self._done, len(texts.all)))
            line = f"[{self._done}/{len(texts.all)}] {grown.prompt} →{_flat(grown.text)}"
            self._console.print(line, soft_wrap=True)

    def notify(self, message: str) -> None:
        self._console.print(message, soft_wrap=True)

    def close(self) -> None:
        if self._progress:
            self._progress.close()


def make_view(console: Console) -> TextView:
    """Return the display that suits this console."""
    return _LiveView(console) if console.is_terminal else _LineView(console)


def text_table(texts: Texts) -> Table:
    """Return a table with a row for each text: number of tokens, the prompt (dim), its output."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for text in texts.all:
        table.add_row(str(text.tokens), Styled.assemble((text.prompt, "dim"), _flat(text.text)))
    return table


def _flat(text: str) -> str:
    """Return the text on one line: verses would fill the screen."""
    return text.replace("\n", " ")
