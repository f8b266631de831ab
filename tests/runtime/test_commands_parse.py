"""From words to a command: every option is there and explained, and a wrong word is exit code 2 with advice."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import expertflow
import pytest
from expertflow import __main__ as program
from expertflow.configs.headings import HEADINGS
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.runtime.command_line.base import DEFAULT_PRESET, EngineCommand
from expertflow.runtime.command_line.registry import chosen_preset, command_classes, parse
from expertflow.runtime.command_line.version import version_lines
from expertflow.runtime.commands.demo import Demo
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.commands.running.why import Why
from expertflow.runtime.commands.serve import Serve
from expertflow.runtime.commands.widen import Widen
from expertflow.workers.kernels import library

MAX_UNGROUPED = 7


def test_options_reach_the_configuration() -> None:
    """An option that is not a field of the configuration, or the other way round, would be silently without effect."""
    words = ["--model", "m", "--expert-memory", "1GiB", "--tier", "host", "--units", "two", "--batch-size", "3"]
    command = parse(["serve", *words, "--record", "r", "--timeline", "t", "--predictor", "noise", "--kv-memory", "1MB"])
    assert isinstance(command, Serve)
    expected = {"model": "m", "expert_memory": "1GiB", "tier": "host", "units": "two", "batch_size": 3}
    given = Config.load(**expected, record="r", timeline="t", predictor="noise", kv_memory="1MB")
    assert command.engine == given


@pytest.mark.parametrize("words", [["--preset", "cpu-host"], ["--preset=cpu-host"]])
def test_a_preset_is_what_options_start_from(words: list[str]) -> None:
    """A preset that overrode the options, or was ignored, would run something else than asked for."""
    command = parse(["serve", "--expert-memory", "50%", *words])
    assert isinstance(command, Serve)
    assert (command.engine.tier, command.engine.expert_memory) == ("host", "50%")


def test_the_last_preset_counts(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "from the file"\n')
    command = parse(["serve", "--preset", "cpu-host", "--preset", str(file)])
    assert isinstance(command, Serve) and command.engine.model == "from the file"
    assert chosen_preset(["serve"]) == "cpu-disk"


def test_prompts_add_up_and_other_commands_have_their_options() -> None:
    generate = parse(["generate", "--prompt", "a", "--prompt", "b c", "--max-new-tokens", "3"])
    assert isinstance(generate, Generate) and generate.prompt == ["a", "b c"] and generate.max_new_tokens == 3
    demo = parse(["demo", "--kill", "compute", "--predictor", "oracle", "--no-check"])
    assert isinstance(demo, Demo) and (demo.kill, demo.predictor, demo.check) == ("compute", "oracle", False)
    assert parse(["why", "t.json", "--longest", "3"]) == Why(timeline=Path("t.json"), longest=3)
    assert parse(["widen", "a", "b"]) == Widen(source=Path("a"), destination=Path("b"), factor=64)


@pytest.mark.parametrize("name", list(command_classes()))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An option without a description leaves a newcomer guessing."""
    with pytest.raises(SystemExit) as end:
        parse([name, "--help"])
    assert end.value.code == 0
    lines = [line.strip("│| ") for line in capsys.readouterr().out.splitlines()]
    options = re.split(r" --(?=[a-z])", " ".join(lines[lines.index("") :]))[1:]
    assert len(options) > 1
    for option in options:
        said = option.partition(" (")[0].split()
        assert len(said) > 3, f"--{option} is not explained"


def test_engine_commands_have_every_option_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name for name, kind in command_classes().items() if issubclass(kind, EngineCommand)} >= {
        "serve",
        "generate",
    }
    with pytest.raises(SystemExit):
        parse(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{field.replace('_', '-')}" in text for field in Config.__struct_fields__)


def test_every_option_of_the_configuration_stands_under_one_heading() -> None:
    """One that is listed nowhere would be no option; a new field of the configuration needs a heading."""
    listed = [name for names in HEADINGS.values() for name in names]
    assert sorted(listed) == sorted(Config.__struct_fields__)
    assert list(HEADINGS) == ["Model", "Memory", "Generation", "Engine", "Research"]


def test_help_shows_options_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """45 options in one box help nobody; research switches stand last, sampling beside prompts."""
    heads = help_boxes("generate", capsys)
    assert list(heads) == ["options", "Prompt", "Sampling", "Structured", *HEADINGS]
    assert {"--temperature", "--max-new-tokens"} <= heads["Sampling"] and "--batch-size" in heads["Generation"]
    assert "--belief" in heads["Research"] and {"--prompt", "--image", "--chat"} <= heads["Prompt"]
    assert not heads["Model"] & heads["Research"] and "--expert-memory" in heads["Memory"]


@pytest.mark.parametrize("name", list(command_classes()))
def test_no_box_of_help_is_crowded(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A new option needs a heading; the place without one is for the few that concern the command as a whole."""
    heads = help_boxes(name, capsys)
    assert len(heads["options"]) <= MAX_UNGROUPED, heads["options"]
    listed = [option for options in heads.values() for option in options]
    assert len(listed) == len(set(listed))


def help_boxes(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, set[str]]:
    """Heading of each box of a command's help -> the options described there."""
    with pytest.raises(SystemExit):
        parse([name, "--help"])
    _, *boxes = re.split(r"(?m)^\W+?((?:\w+ )?options) \W+$", capsys.readouterr().out)
    return {
        head.removesuffix(" options"): set(re.findall(r"(?m)^\W+?(?:-h, )?(--[a-z-]+)", box))
        for head, box in zip(boxes[::2], boxes[1::2], strict=True)
    }


@pytest.mark.parametrize("name", [name for name, cls in command_classes().items() if issubclass(cls, EngineCommand)])
def test_what_a_command_is_by_default(name: str) -> None:
    """Building it from headings must change nothing of what its class says."""
    kind = command_classes()[name]
    required: dict[str, tuple[str, Any]] = {
        "trace": ("folder", Path("file")), "batch": ("requests", Path("file")), "cluster": ("action", "status"),
    }  # fmt: skip
    given = dict([required[name]]) if name in required else {}
    words = [str(value) for value in given.values()]
    assert issubclass(kind, EngineCommand)
    assert parse([name, *words]) == kind(engine=kind.engine_defaults(DEFAULT_PRESET), **given)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["serve", "--expert-memry", "1GB"], "--expert-memory"),
        (["serve", "--tier", "cloud"], "disk"),
        (["serve", "--batch-size", "many"], "--batch-size"),
        (["sreve"], "serve"),
        ([], "serve"),
        (["generate", "--prompt"], "--prompt"),
        (["widen", "only-one"], "DESTINATION"),
    ],
)
def test_words_that_are_no_options(words: list[str], advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever mistypes must be told what was meant, on stderr, with exit code 2."""
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert advice.lower() in told.err.lower() and not told.out


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--preset", "nope"], "preset"),
        (["--expert-memory", "3x"], "expert_memory"),
        (["--batch-size", "0"], "batch_size"),
        (["--predictor", "oracle"], "oracle_routes"),
        (["--preset", "/no/such.toml"], "preset"),
        (["--model", "caf\udce9"], "model"),
    ],
)
def test_values_that_the_configuration_refuses(words: list[str], where: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(["serve", *words])
    assert refused.value.where == where and refused.value.remedy


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a = ", b"batch_size = 1\nbatch_size = 2", b"a = " + b"[" * 5000, b"batch_size = -1"]
)
def test_a_preset_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        parse(["serve", "--preset", str(tmp_path / "my.toml")])
    assert refused.value.where in (str(tmp_path / "my.toml"), "batch_size") and refused.value.remedy


def test_the_command_line_imports_no_torch() -> None:
    """Each `expertflow top` would take seconds and 350 MB."""
    code = (
        "import sys; from expertflow.runtime.command_line.registry import command_classes, parse;"
        "command_classes(); parse(['serve', '--model', 'm']);"
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


def test_the_version_option_prints_what_a_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["expertflow", "--version"])
    before = signal.getsignal(signal.SIGINT)
    try:
        assert program.main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    told = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(told) == ["expertflow", "python", "torch", "transformers", "kernels"]
    assert told["python"] == platform.python_version() and told["torch"] == version("torch")
    assert told["expertflow"] == expertflow.__version__ and told["transformers"] == version("transformers")


def test_the_version_tells_which_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine is several times as slow without them, and nothing else says so at a glance."""
    library.usable_variants.cache_clear()
    if library.library_file():
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        assert version_lines()[-1] in ("kernels avx2", f"kernels of torch alone: {library.NO_VARIANT}")
    library.usable_variants.cache_clear()
    monkeypatch.setattr("expertflow.runtime.command_line.version.absence", lambda: library.NOT_BUILT)
    assert version_lines()[-1] == f"kernels of torch alone: {library.NOT_BUILT}"


def test_an_option_of_one_letter_is_named() -> None:
    """vLLM's `run-batch -i IN -o OUT` was answered with the name of a field."""
    with pytest.raises(UsageError, match=r"batch IN.jsonl OUT.jsonl") as caught:
        parse(["batch", "-i", "in.jsonl", "-o", "out.jsonl"])
    assert caught.value.where == "-i"
    assert parse(["generate", "--model", "m", "--prompt=-i"]).prompt == ["-i"]  # type: ignore[attr-defined]
