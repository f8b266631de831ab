"""The pages do what they say: commands parse, those of `RUN` run, links and paths exist.

A block that cannot run in a test stands behind `<!-- parse only: reason -->`. The pages share one engine, which is the
one that the tutorial serves.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import expertflow
import msgspec
import pytest
from expertflow.configs.headings import HEADINGS
from expertflow.configs.schema import Config
from expertflow.runtime.command_line.registry import NAMES, parse
from expertflow.runtime.commands.common import engine_client
from expertflow.runtime.commands.serve import Serve
from expertflow.runtime.engine.supervisor import Supervisor

ROOT = Path(expertflow.__file__).resolve().parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    page for page in (ROOT / "docs").rglob("*.md") if "results" not in page.parts
)
RUN = [ROOT / "README.md"] + [
    ROOT / "docs" / name for name in ("tutorial.md", "how-to/chat.md", "how-to/structured-output.md")
]
PYTHON = [ROOT / "docs" / name for name in ("configuration.md", "how-to/add-a-policy.md", "how-to/run-a-batch.md")]
"""Pages whose Python blocks run, too."""
SLOW = {"plan": "a process that imports torch", "train": "trains", "verify": "a second engine and transformers"}
"""Commands that run in `make test-all` only."""
OTHER_WORDS = {"make", "source", "cd", "pip", "curl"}
FENCE = re.compile(
    r"(?:<!-- (?P<note>parse only: [^>]+) -->\n)?```(?P<language>sh|python)\n(?P<text>.*?)```", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    where: str
    language: str
    text: str
    runs: bool

    @property
    def commands(self) -> list[list[str]]:
        """Its shell commands as words, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line.partition(" > ")[0], comments=True))]


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            where=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}",
            language=found["language"],
            text=found["text"],
            runs=found["note"] is None,
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_every_block_is_valid(block: Block) -> None:
    """An option that was renamed must be found here, not by a reader."""
    if block.language == "python":
        compile(block.text, block.where, "exec")
        return
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in block.commands:
        if words[0] == "expertflow":
            parse([word for word in words[1:] if word != "&"])
        else:
            assert words[0] in OTHER_WORDS, words
            assert words[0] != "make" or words[1] in targets, words


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone to the commands."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture(scope="module")
def engine(workplace: Path, runtime_base: Path) -> Iterator[Supervisor]:
    """The engine of the tutorial's `expertflow serve`, with one thread: more wait for each other on busy cores."""
    words = next(words for block in read_blocks(RUN[1]) for words in block.commands if words[1:2] == ["serve"])
    served = parse(words[1:])
    assert isinstance(served, Serve) and served.address_file
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        with Supervisor(msgspec.structs.replace(served.engine, compute_threads=1)) as running:
            served.address_file.write_text(running.address)
            yield running


@pytest.fixture
def shared(engine: Supervisor, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and blocks that would start an engine of the same model get the one that runs."""

    def same(config: Config) -> AbstractContextManager[Supervisor]:
        assert config.model == engine.config.model
        return nullcontext(engine)

    monkeypatch.chdir(workplace)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who was the king?\n"))  # of `expertflow chat`
    monkeypatch.setattr(engine_client, "running_engine", same)
    monkeypatch.setattr(expertflow, "Supervisor", same, raising=False)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
@pytest.mark.usefixtures("shared")
def test_the_first_pages_run(page: Path) -> None:
    run_page(page, lambda name: name not in SLOW)


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
@pytest.mark.usefixtures("shared")
def test_python_of_other_pages_runs(page: Path) -> None:
    run_page(page, lambda name: False)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
@pytest.mark.usefixtures("shared", "one_thread")
def test_the_first_pages_run_whole(page: Path) -> None:
    run_page(page, lambda name: True)


def run_page(page: Path, wanted: Callable[[str], bool]) -> None:
    """Run the blocks of a page in order, as one reader would."""
    names: dict[str, Any] = {}
    for block in read_blocks(page):
        if block.runs and block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        elif block.runs:
            for words in block.commands:
                if words[0] == "expertflow" and words[1] != "serve" and wanted(words[1]):
                    run_command(words[1:], block.where)


def run_command(words: list[str], where: str) -> None:
    filled = [Path("address").read_text() if word == "$(cat address)" else word for word in words]
    assert parse(filled).run() == 0, f"{where}: expertflow {shlex.join(words)}"


LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:configs|ipc|workers|runtime|tests|benchmarks|docs|examples)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings that links name are there, and files that the text names."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = [link for link in LINK.findall(text) if "://" not in link and not leads_somewhere(page, link)]
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    allowed = page.parent.name == "log" or page.name == "CHANGELOG.md"  # paths of their day
    assert not broken and (allowed or not missing), (broken, missing)


def leads_somewhere(page: Path, link: str) -> bool:
    file, _, heading = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    return target.exists() and (not heading or heading in headings(target))


def headings(page: Path) -> set[str]:
    """Anchors as they are made of headings: lower case, spaces as hyphens, other signs left out."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_option_and_command_is_documented() -> None:
    """Options stand under the headings of the command line's help."""
    chapters = (ROOT / "docs" / "configuration.md").read_text().split("\n## ")
    fields = {text.partition("\n")[0]: set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) for text in chapters}
    commands = re.findall(r"^\| `expertflow (\w+)", (ROOT / "docs" / "command-line.md").read_text(), re.MULTILINE)
    assert {heading: fields.get(heading) for heading in HEADINGS} == {name: set(of) for name, of in HEADINGS.items()}
    assert set(NAMES) <= set(commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_a_page_wrap_at_120(page: Path) -> None:
    """Tables, templates of prompts and the page that trials write are as long as they are."""
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert page.name == "models.md" or not long


INDEX = (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if "docs" in page.parts], ids=lambda page: page.name)
def test_a_page_says_who_needs_it_and_is_linked(page: Path) -> None:
    """The page of the package index says what the package is instead."""
    first = page.read_text().split("\n\n")[1]
    assert first.startswith("For ") or page.name == "package.md"
    assert page.name == "README.md" or f"]({page.relative_to(ROOT / 'docs')})" in INDEX.replace("\n  ", " ")
