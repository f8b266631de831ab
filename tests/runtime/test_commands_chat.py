"""`expertflow chat` against the real scheduler with a fake compute, fed by a pipe."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import RequestError, UsageError
from expertflow.ipc.messages import Sampling
from expertflow.runtime.chat.terminal import Terminal
from expertflow.runtime.command_line.base import WRONG_USAGE
from expertflow.runtime.commands.chat import Chat
from expertflow.runtime.text.codec import TextCodec
from expertflow.tests.runtime.test_added_tokens import save_tokenizer
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

TEMPLATE = """{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}
{%- if add_generation_prompt %}{{ mark or '' }}a:{% endif %}"""
Feed = Callable[[str], None]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    save_tokenizer(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    with FakeEngine(tmp_path, vocabulary=257) as engine:
        yield engine.address


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Put lines on stdin."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def answer(folder: Path, prompt: str, count: int) -> str:
    """Return what the fake compute says to a rendered conversation, its end of text left out."""
    codec = TextCodec(str(folder))
    return codec.decode(continuation(codec.encode(prompt), count, Sampling(seed=1)))


def chat(address: str, **options: object) -> Chat:
    return Chat(address=address, seed=1, max_new_tokens=4, ignore_eos=True, **options)  # pyright: ignore


def test_lines_of_a_pipe_are_questions_of_one_conversation(
    address: str, tmp_path: Path, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prompt holds what was said before, as the template writes it."""
    feed("hi\n\nmore\n")
    assert chat(address, system="S").run() == 0
    first = answer(tmp_path, "s:S;u:hi;a:", 4)
    second = answer(tmp_path, f"s:S;u:hi;a:{first};u:more;a:", 4)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_commands_change_the_conversation(
    address: str, tmp_path: Path, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    feed("hi\n/undo\nb\n/system T\nc\n/retry\n/history\n/nonsense\n/help\n/exit\nnever\n")
    assert chat(address, template_values='{"mark": "!"}').run() == 0
    told = capsys.readouterr()
    third = answer(tmp_path, "s:T;u:c;!a:", 4)
    expected = [answer(tmp_path, "u:hi;!a:", 4), answer(tmp_path, "u:b;!a:", 4), third, third]
    assert told.out == "".join(f"{text}\n" for text in expected)
    assert f"system: T\nuser: c\nassistant: {third}\n" in told.err
    assert "/nonsense: no such command" in told.err and "/clear" in told.err


@pytest.mark.usefixtures("default_handler")
def test_ctrl_c_stops_an_answer_and_not_the_program(
    address: str, tmp_path: Path, feed: Feed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come stays in the conversation, and the next question is answered."""
    write, pressed = Terminal.write, []

    def press_once(self: Terminal, content: str, reasoning: str = "") -> None:
        write(self, content, reasoning)
        if not pressed:
            pressed.append(content)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "write", press_once)
    feed("hi\nmore\n")
    assert Chat(address=address, seed=1, max_new_tokens=30, ignore_eos=True).run() == 0
    told = capsys.readouterr()
    first = answer(tmp_path, "u:hi;a:", 30)
    begun, _, rest = told.out.partition("\n")
    assert first.startswith(begun.rstrip("\ufffd")) and pressed[0] and begun.startswith(pressed[0])
    assert rest and told.err.count("(stopped)") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_answer_that_fails_is_forgotten(
    address: str, tmp_path: Path, feed: Feed, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question that does not fit must not spoil those after it; the exit code tells of it."""
    feed("x" * 200 + "\nhi\n")
    assert chat(address).run() == WRONG_USAGE
    told = capsys.readouterr()
    assert told.out == answer(tmp_path, "u:hi;a:", 4) + "\n"
    assert "context is 64" in told.err


def test_what_cannot_work_is_refused_before_an_engine_is_started(address: str, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for command in (
        Chat(engine=Config.load(model=tmp_path / "bare")),
        Chat(template_values="[]"),
        Chat(template_values="{"),
        Chat(address=address, engine=Config.load(batch_size=2)),
        Chat(json_schema=tmp_path / "nowhere"),
    ):
        with pytest.raises(UsageError):
            command.run()
    with pytest.raises(RequestError):
        Chat(temperature=-1).run()
