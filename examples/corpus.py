"""The built-in model's text: three public-domain works, read from the Debian packages that carry them."""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
SECTION_CHARS = 6_000
"""Documents longer than this are cut at a paragraph, so that held-out parts lie spread over every work."""

_REPEAT_CHARS = 40
_VERSE = re.compile(r"^ {1,3}(\d+) (.*)$")
_CHAPTER = re.compile(r"^(?:[123] )?[A-Z][A-Za-z ]+ \d+$")
_SKIPPED_PAGES = re.compile(r"^(doc_|keyword_index|requirements|sitemap|capi3ref|changes|oldnews|news|syntaxdiagrams)")


@dataclass(frozen=True)
class Source:
    """One work: the Debian package (and version) it comes from, its licence, and how to read its documents."""

    title: str
    package: str
    version: str
    licence: str
    read: Callable[[Path], Iterator[str]]


@dataclass(frozen=True)
class Split:
    """Documents by use; no document, and no long paragraph, is in two of them."""

    train: list[str]
    develop: list[str]
    held_out: list[str]


def load_documents(root: Path) -> list[list[str]]:
    """Read the documents of every source below `root` ("/" when the packages are installed).

    Raises FileNotFoundError naming the Debian package to install when a work is missing.
    """
    return [list(_sections(_without_repeats(source.read(root)))) for source in SOURCES]


def split_documents(works: list[list[str]], share: float, seed: int) -> Split:
    """Set aside `share` of every work's characters for development and the same for the final test, seeded."""
    split = Split([], [], [])
    for work_number, documents in enumerate(works):
        order = list(documents)
        random.Random(seed + work_number).shuffle(order)
        quota_chars = share * sum(map(len, order))
        order = _take(order, split.held_out, quota_chars)
        split.train.extend(_take(order, split.develop, quota_chars))
    for part_number, part in enumerate((split.train, split.develop, split.held_out)):
        random.Random(seed + part_number).shuffle(part)
    return split


def join_documents(documents: Iterable[str]) -> str:
    """Join documents into the text that is tokenized: each ends in the end-of-text token and a newline."""
    return "".join(f"{document}{END_OF_TEXT}\n" for document in documents)


def _take(documents: list[str], into: list[str], quota_chars: float) -> list[str]:
    taken_chars = 0
    for position, document in enumerate(documents):
        if taken_chars >= quota_chars:
            return documents[position:]
        into.append(document)
        taken_chars += len(document)
    return []


def _sections(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        section: list[str] = []
        for paragraph in document.split("\n\n"):
            section.append(paragraph)
            if sum(map(len, section)) >= SECTION_CHARS:
                yield "\n\n".join(section)
                section = []
        if sum(map(len, section)) > 20:
            yield "\n\n".join(section)


def _without_repeats(documents: Iterable[str]) -> Iterator[str]:
    """Drop long paragraphs seen before: a text repeated across pages would leak into the held-out part."""
    seen: set[str] = set()
    for document in documents:
        kept = [part for part in document.split("\n\n") if len(part) < _REPEAT_CHARS or part not in seen]
        seen.update(kept)
        if kept:
            yield "\n\n".join(kept)


def _need(path: Path, package: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: install the Debian package {package} (`apt-get install {package}`), or unpack it with "
            f"`apt-get download {package} && dpkg -x {package}_*.deb DIR` and pass --packages DIR"
        )
    return path


def _read_bible(root: Path) -> Iterator[str]:
    program = _need(root / "usr/bin/bible", "bible-kjv")
    data = _need(root / "usr/lib/bible.data", "bible-kjv-text")
    command = [str(program), "-p", f"{data.parent}/", "-l70", "gen1:1-rev22:21"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    chapter: list[str] = []
    for line in printed.stdout.splitlines():
        if _CHAPTER.match(line):
            yield from _chapter(chapter)
            chapter = [line + "\n"]
        elif verse := _VERSE.match(line):
            chapter.append(f"{verse[1]} {verse[2]}")
        elif line.strip() and chapter:
            chapter[-1] += " " + line.strip()
    yield from _chapter(chapter)


def _chapter(lines: list[str]) -> Iterator[str]:
    if len(lines) > 1:
        yield "\n".join(lines) + "\n"


def _read_jargon(root: Path) -> Iterator[str]:
    path = _need(root / "usr/share/dictd/jargon.dict.dz", "dict-jargon")
    text = gzip.decompress(path.read_bytes()).decode()
    lexicon = text[text.index("\n(TM)\n") :]  # what comes before is about the dictionary file, not part of the work
    for entry in re.split(r"\n(?=\S)", lexicon):
        yield "\n\n".join(_joined(part) for part in re.split(r"\n\s*\n", entry) if part.strip()) + "\n"


def _joined(paragraph: str) -> str:
    return " ".join(line.strip() for line in paragraph.splitlines())


def _read_sqlite(root: Path) -> Iterator[str]:
    folder = _need(root / "usr/share/doc/sqlite3/index.html", "sqlite3-doc").parent
    for page in [*sorted(folder.glob("*.html")), *sorted(folder.glob("c3ref/*.html"))]:
        if not _SKIPPED_PAGES.match(page.name):
            yield _page_text(page.read_text(errors="replace"))


def _page_text(markup: str) -> str:
    parser = _PageText()
    parser.feed(markup)
    parser.close()
    return parser.text()


class _PageText(HTMLParser):
    """The running text of a page: paragraphs one blank line apart, code kept line by line, menus left out."""

    _BLOCKS = frozenset(
        ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "dt", "dd", "li")
        + ("table", "tr", "blockquote", "pre", "div", "hr", "center")
    )
    _SILENT = frozenset(("script", "style", "svg", "select", "title", "button"))
    _MENUS = ("nosearch", "imgcontainer", "fancy_toc", "toc_sub")

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []
        self._open_divs: list[bool] = []
        self._silent = 0
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            names = " ".join(value or "" for name, value in attrs if name in ("class", "id"))
            self._open_divs.append(any(menu in names for menu in self._MENUS))
        self._silent += tag in self._SILENT
        self._verbatim += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._open_divs:
            self._open_divs.pop()
        self._silent = max(0, self._silent - (tag in self._SILENT))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent and not any(self._open_divs):
            self._pieces.append(data if self._verbatim else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """Return what was read, paragraphs separated by one blank line."""
        text = "".join(self._pieces).replace("\xa0", " ")
        text = re.sub(r"\n(?:[ \t]*\n)+", "\n\n", re.sub(r"[ \t]+\n", "\n", text))
        return re.sub(r"\n\n +(?=\S)", "\n\n", text).strip() + "\n"

    def _break(self, tag: str) -> None:
        if tag in self._BLOCKS:
            self._pieces.append("\n\n")
        elif tag in ("br", "td", "th"):
            self._pieces.append("\n" if tag == "br" else " ")


SOURCES = (
    Source("King James Version of the Bible", "bible-kjv-text", "4.38", "public domain", _read_bible),
    Source("The Jargon File 4.4.7", "dict-jargon", "4.4.7-3.1", "public domain", _read_jargon),
    Source("SQLite documentation", "sqlite3-doc", "3.40.1-2+deb12u2", "public domain", _read_sqlite),
)
