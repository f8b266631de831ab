"""Records of published data sets become the prompts that are published for them; a bad one is named by its line."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import expertflow
import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Snapshot
from expertflow.runtime.client import Batch, Client
from expertflow.runtime.client.request import BatchUpdates
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands import verify
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.prompt_sources.prompt_lines import cut_texts, read_prompt_lines, read_texts
from expertflow.runtime.prompt_sources.workloads import Format, record_prompts
from expertflow.runtime.text.codec import TextCodec
from expertflow.tests.scheduler.fake_engine import FakeEngine
from tokenizers import Tokenizer, models, pre_tokenizers

SAMPLES = Path(__file__).parents[1] / "data" / "workloads"
"""A few records each, written for these tests, with the field names of the data sets."""


def prompts(name: str, kind: Format) -> list[str]:
    return [str(line.prompt) for line in read_prompt_lines([], SAMPLES / name, ids=False, kind=kind)]


def test_alpaca_has_a_template_with_and_one_without_an_input():
    without, with_input, braces = prompts("alpaca.jsonl", "alpaca")
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName three birds that cannot fly.\n\n### Response:"
    )
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nCorrect the spelling.\n\n### Input:\n"
        "Teh boat leaves at noon.\n\n### Response:"
    )
    assert "### Instruction:\nSay {hello} in Welsh.\n\n### Response:" in braces, "braces of a record are text"


def test_the_answer_is_never_part_of_a_prompt():
    """A model that is shown the answer is not measured."""
    for kind, answers in {"alpaca": ["kiwi", "leaves at noon.\n\n###"], "xsum": ["freed"], "aime": ["77"]}.items():
        text = "".join(prompts(f"{kind}.jsonl", kind)).replace("Teh boat leaves at noon.", "")  # pyright: ignore
        assert not [answer for answer in answers if answer in text]


def test_wmt16_goes_from_english_to_the_other_language():
    assert prompts("wmt16.jsonl", "wmt16") == [
        "English phrase: The train does not stop here.\nGerman phrase:",
        "English phrase: The cat sleeps on the roof.\nRomanian phrase:",
    ]


def test_xsum_keeps_the_lines_of_a_document():
    assert prompts("xsum.jsonl", "xsum")[0] == (
        "###\nArticle: A ferry ran aground off the northern pier on Tuesday.\nNobody was hurt, and the next tide set "
        "it free.\n\nSummarize the above article in 1 sentence.\n"
    )


def test_aime_under_each_of_its_field_names():
    assert prompts("aime.jsonl", "aime") == [
        "Question: Find the sum of all primes below $20$.\nAnswer:",
        "Question: How many squares lie between $10$ and $200$?\nAnswer:",
        "Question: Find the remainder of $7^5$ by $10$.\nAnswer:",
    ]


def test_an_array_gives_what_lines_give():
    """Alpaca was published as one array, over many lines."""
    assert prompts("alpaca.json", "alpaca") == prompts("alpaca.jsonl", "alpaca")[:2]


@pytest.mark.parametrize(
    ("kind", "line", "what"),
    [
        ("alpaca", "{", "truncated"),
        ("alpaca", '{"input": "x"}', "missing required field `instruction`"),
        ("alpaca", '{"instruction": 5}', r"Expected `str`.*\$.instruction"),
        ("alpaca", '{"instruction": " "}', "`instruction` is missing or empty"),
        ("alpaca", '"text"', "Expected `object`"),
        ("wmt16", '{"translation": {"en": "a"}}', "has en, not en and one of cs, de"),
        ("wmt16", '{"translation": {"de": "a", "fr": "b"}}', "has de, fr, not en"),
        ("wmt16", '{"translation": {"en": "a", "xx": "b"}}', "has en, xx"),
        ("wmt16", '{"translation": {"en": "", "de": "b"}}', "`translation.en` is missing or empty"),
        ("xsum", '{"summary": "x"}', "missing required field `document`"),
        ("aime", '{"Answer": 5}', "`problem` is missing or empty"),
        ("aime", "[" * 50 + "1" + "]" * 50, "Expected `object`"),
    ],
)
def test_a_bad_line_is_named(kind: Format, line: str, what: str):
    """In a file of ten thousand records nobody finds it otherwise."""
    good = (SAMPLES / f"{kind}.jsonl").read_bytes().splitlines()[0]
    with pytest.raises(UsageError, match=what) as refused:
        record_prompts(good + b"\n" + line.encode() + b"\n", "some.jsonl", kind)
    assert refused.value.where == "some.jsonl, line 2" and kind in refused.value.what
    assert json.loads(refused.value.remedy.removeprefix("Give ").removesuffix(", or another --format"))


def test_an_empty_line_is_called_so():
    with pytest.raises(UsageError, match="the line is empty") as refused:
        record_prompts(b'{"document": "a"}\r\n\r\n', "some.jsonl", "xsum")
    assert refused.value.where == "some.jsonl, line 2"


def test_a_bad_record_of_an_array_is_named():
    with pytest.raises(UsageError, match="document") as refused:
        record_prompts(b'[{"document": "a"},\n {"text": "b"}]', "some.json", "xsum")
    assert refused.value.where == "some.json, record 2"
    with pytest.raises(UsageError, match="is not a JSON array") as refused:
        record_prompts(b'[{"document": "a"}', "some.json", "xsum")
    assert refused.value.where == "some.json"


def test_a_record_that_is_not_utf_8():
    with pytest.raises(UsageError, match="xsum") as refused:
        record_prompts(b'{"document": "\xff"}', "some.jsonl", "xsum")
    assert refused.value.where == "some.jsonl, line 1"


def test_a_format_needs_a_file():
    """Else a prompt would be run without its template, without a word."""
    with pytest.raises(UsageError, match="of a file") as refused:
        read_prompt_lines(["a"], None, ids=False, kind="alpaca")
    assert refused.value.where == "format"
    with pytest.raises(UsageError, match="not of --ids"):
        read_prompt_lines([], SAMPLES / "alpaca.jsonl", ids=True, kind="alpaca")


def test_the_words_of_the_command_line():
    """`expertflow generate --format alpaca FILE`."""
    command = parse(["generate", "--format", "alpaca", "some.jsonl", "--model", "m"])
    assert isinstance(command, Generate)
    assert (command.file, command.format) == (Path("some.jsonl"), "alpaca")
    with pytest.raises(UsageError, match="both given"):
        Generate(file=Path("a"), prompts=Path("b")).run()


def test_verify_runs_the_prompts_of_a_workload(monkeypatch: pytest.MonkeyPatch):
    """`expertflow verify --format aime FILE`, as `generate` has it."""
    ran: list[object] = []

    class Client:
        model = None

        def submit(self, given: list[object], max_new_tokens: int) -> Batch:
            ran.extend(given)
            return Batch([], BatchUpdates(), TextCodec(""), lambda requests: None, lambda reached, timeout_s: None)

    monkeypatch.setattr(verify, "running_engine", lambda config: nullcontext(SimpleNamespace(address="")))
    monkeypatch.setattr(verify, "Client", lambda address: nullcontext(Client()))
    monkeypatch.setattr(verify, "engine_remarks", lambda engine: [])
    monkeypatch.setattr(verify, "run_checks", lambda *asked: [])
    assert parse(["verify", "--format", "aime", str(SAMPLES / "aime.jsonl"), "--model", "hub/m"]).run() == 0
    assert ran == prompts("aime.jsonl", "aime")


def test_texts_of_records_are_cut_each_for_itself():
    """`expertflow trace --text FILE --format xsum`: a piece never holds the end of one and the begin of the next."""
    texts = read_texts(SAMPLES / "xsum.jsonl", "xsum")
    assert [each.text for each in texts] == prompts("xsum.jsonl", "xsum")
    codec = TextCodec(str(Path(expertflow.__file__).parent / "examples" / "model"))
    pieces = cut_texts(texts, codec, 5)
    expected = [
        ids[at : at + 5] for ids in map(codec.encode, prompts("xsum.jsonl", "xsum")) for at in range(0, len(ids), 5)
    ]
    assert [piece.prompt for piece in pieces] == expected
    assert f"{SAMPLES / 'xsum.jsonl'}, line 2, token 1" in [piece.where for piece in pieces]


def test_generate_runs_a_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    nothing = Snapshot(time_ns=0, stages={}, pss_bytes={}, restarts={}, facts={})
    monkeypatch.setattr(Client, "stats", lambda self: nothing)
    tokenizer = Tokenizer(models.WordLevel({"Question": 1, "Answer": 2, "<unk>": 3}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with FakeEngine(tmp_path) as engine:
        command = Generate(
            file=SAMPLES / "aime.jsonl", format="aime", address=engine.address, max_new_tokens=2, json=True
        )
        assert command.run() == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts("aime.jsonl", "aime")
    assert all(answer["token_ids"] for answer in answers)
