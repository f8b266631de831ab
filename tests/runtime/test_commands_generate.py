"""`expertflow generate` against the real scheduler with a fake compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import EngineError, RequestError, UsageError
from expertflow.ipc.messages import Sampling, Snapshot
from expertflow.runtime.client import Client
from expertflow.runtime.commands.common.printing import Printer
from expertflow.runtime.commands.generate import Generate
from expertflow.tests.runtime.test_added_tokens import save_tokenizer
from expertflow.tests.scheduler.fake_compute import VOCABULARY, continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    nothing = Snapshot(time_ns=0, stages={}, pss_bytes={}, restarts={}, facts={})
    monkeypatch.setattr(Client, "stats", lambda self: nothing)
    with FakeEngine(tmp_path) as engine:
        yield engine.address


def test_results_come_in_the_order_of_the_prompts(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A short prompt ends before a long one; its line must not come first."""
    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(12)]
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    command = Generate(prompt=texts, ids=True, address=address, max_new_tokens=5, temperature=1.0, seed=3, json=True)
    assert command.run() == 0
    told = capsys.readouterr()
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    for i, answer in enumerate(answers):
        expected = continuation(prompts[i], 5, Sampling(seed=3 + i))
        assert answer["token_ids"] == expected[: len(answer["token_ids"])]
        assert answer["finish_reason"] == ("length" if len(answer["token_ids"]) == 5 else "stop")
    assert "12 prompts" in told.err and "tokens/s" in told.err


def test_without_a_tokenizer_ids_are_printed(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Generate(prompt=["1 2"], ids=True, address=address, max_new_tokens=1, seed=0).run() == 0
    first = continuation([1, 2], 1, Sampling())[0]
    assert capsys.readouterr().out == f"[--prompt 1] {first}\n"


def test_a_bad_prompt_fails_alone_and_is_named(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others must come out, and the exit code must say that not all did."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"1 2\n{VOCABULARY + 5}\n3\n")
    assert Generate(prompts=file, ids=True, address=address, max_new_tokens=2).run() == 2
    told = capsys.readouterr()
    assert [line.partition("]")[0] for line in told.out.splitlines()] == [f"[{file}, line 1", f"[{file}, line 3"]
    assert f"{file}, line 2" in told.err and str(VOCABULARY + 5) in told.err


def test_a_bad_prompt_has_its_line_of_json_too(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Else line i would not be prompt i."""
    command = Generate(prompt=["1", str(VOCABULARY), "2"], ids=True, address=address, max_new_tokens=1, json=True)
    assert command.run() == 2
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3
    errors = [answer for answer in answers if "error" in answer]
    assert [answer["prompt"] for answer in errors] == [[VOCABULARY]]
    assert errors == [answers[1]]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": 1e300}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
    ],
)
def test_wrong_options_are_refused_before_an_engine_is_started(options: dict[str, float], where: str) -> None:
    """Whoever mistypes a number must not wait ten seconds to hear of it; the model does not even exist."""
    command = Generate(prompt=["a"], engine=Config.load(model="/nowhere"), **options)  # pyright: ignore
    with pytest.raises(RequestError) as refused:
        command.run()
    assert refused.value.where == where


def test_engine_options_beside_an_address_are_refused(address: str) -> None:
    """They would be silently without effect."""
    with pytest.raises(UsageError, match="options of the engine"):
        Generate(prompt=["a"], address=address, engine=Config.load(batch_size=2)).run()


@pytest.mark.parametrize(("given", "sent"), [(True, True), (False, None)])
def test_batch_invariant_goes_with_the_request_to_a_running_engine(
    address: str, monkeypatch: pytest.MonkeyPatch, given: bool, sent: bool | None
) -> None:
    """Not given, the engine's own setting holds."""
    asked: list[object] = []
    submit = Client.submit

    def watched(self: Client, *args: Any, **options: Any) -> Any:
        asked.append(options["batch_invariant"])
        return submit(self, *args, **options)

    monkeypatch.setattr(Client, "submit", watched)
    engine = Config.load(batch_invariant=given)
    assert Generate(prompt=["1 2"], ids=True, address=address, max_new_tokens=1, engine=engine).run() == 0
    assert asked == [sent]


@pytest.mark.parametrize("as_json", [False, True])
def test_an_engine_that_dies_is_told_of_once(
    as_json: bool, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was told of for each prompt, and again when its counters were read."""
    end = EngineError("the engine has ended", address, "Start it again")

    def dies(self: Generate, client: Client, printer: Printer, lines: object) -> None:
        monkeypatch.setattr(Client, "stats", lambda self: fail())
        printer.take_results([end] * len(printer.lines))

    def fail() -> Snapshot:
        raise end

    monkeypatch.setattr(Generate, "_generate", dies)
    assert Generate(prompt=["1", "2", "3"], ids=True, address=address, json=as_json).run() == 1
    told = capsys.readouterr()
    assert told.err.count("the engine has ended") == 1 and "where: " + address in told.err
    assert len(told.out.splitlines()) == (3 if as_json else 0), "every prompt has its line"


def test_no_engine_at_the_address() -> None:
    with pytest.raises(EngineError, match="no engine"):
        Generate(prompt=["a"], address="/nowhere").run()


# Chat templates


@pytest.fixture
def chatting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine whose model has a tokenizer and a chat template."""
    nothing = Snapshot(time_ns=0, stages={}, pss_bytes={}, restarts={}, facts={})
    monkeypatch.setattr(Client, "stats", lambda self: nothing)
    save_tokenizer(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_text("<mask>{{ messages[0].content }}<mask>")
    with FakeEngine(tmp_path, vocabulary=257) as engine:
        yield engine.address


def test_texts_beside_a_chat_template_are_given_bare_and_that_is_said_once(
    chatting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that was trained on chats answers a bare text badly, and nobody would know why."""
    assert Generate(prompt=["ab", "c"], address=chatting, max_new_tokens=1, json=True).run() == 0
    told = capsys.readouterr()
    assert [json.loads(line)["prompt_tokens"] for line in told.out.splitlines()] == [2, 1]
    assert told.err.count("chat template") == 1 and "--chat" in told.err
    assert Generate(prompt=["1 2"], ids=True, address=chatting, max_new_tokens=1).run() == 0
    assert "chat" not in capsys.readouterr().err


def test_chat_puts_texts_into_the_template(chatting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Generate(prompt=["ab", "c"], chat=True, address=chatting, max_new_tokens=1, json=True).run() == 0
    told = capsys.readouterr()
    assert [json.loads(line)["prompt_tokens"] for line in told.out.splitlines()] == [4, 3]
    assert "chat" not in told.err


@pytest.mark.parametrize("options", [{"ids": True, "prompt": ["1"]}, {"prompt": ["a"]}])
def test_chat_that_cannot_be_is_refused_before_an_engine_is_started(options: dict[str, Any], tmp_path: Path) -> None:
    """Of ids, and of a model without a template."""
    with pytest.raises(UsageError) as refused:
        Generate(chat=True, engine=Config.load(model=tmp_path), **options).run()
    assert "chat" in str(refused.value)
