"""How commands end: exit codes, and errors a person can act on."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from expertflow import __main__, errors
from expertflow.runtime.command_line import outcome, program
from expertflow.runtime.command_line.base import Command
from expertflow.workers.traces.trace import REMEDY


@dataclass(frozen=True, kw_only=True)
class Failing(Command):
    """Raises what it was given."""

    error: BaseException

    def run(self) -> int:
        raise self.error


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ending(error: BaseException, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(program, "parse", lambda arguments: Failing(error=error))
    monkeypatch.setattr(sys, "argv", ["expertflow", "anything", *words])
    return __main__.main()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.CheckpointError("x"), 2),
        (errors.BudgetError("x"), 2),
        (errors.RequestError("x"), 2),
        (errors.BusyError("x"), 1),
        (errors.EngineError("x"), 1),
        (errors.ExpertFlowError("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_code_tells_wrong_input_from_a_failed_run(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script tells by them whether its input was wrong or the run failed."""
    assert ending(error, monkeypatch) == code


def test_an_error_says_what_where_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback, or an error on stdout, helps nobody who runs a script."""
    ending(errors.UsageError("is too small", "expert_memory", "Give 1GB"), monkeypatch)
    told = capsys.readouterr()
    assert told.err == "error: --expert-memory is too small\nto do: Give 1GB\n"
    assert not told.out


def test_what_is_not_known_is_left_out() -> None:
    assert outcome.describe(errors.EngineError("broke", "stage compute")) == "error: broke\nwhere: stage compute"
    assert outcome.describe(errors.EngineError("broke", "engine")) == "error: broke\nwhere: engine"
    assert outcome.describe(errors.EngineError("broke")) == "error: broke"


def test_tracebacks_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ending(ValueError("oops"), monkeypatch)
    without = capsys.readouterr().err
    ending(ValueError("oops"), monkeypatch, "--debug")
    with_it = capsys.readouterr().err
    assert "Traceback" not in without and "oops" in without and "--debug" in without
    assert "Traceback" in with_it and "in run" in with_it


def test_sigterm_unwinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that simply died would orphan its engine in the middle of a step."""
    ending(errors.UsageError("x"), monkeypatch)
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (errors.RequestError("must be at least 1", "max_new_tokens", "Ask"), "error: --max-new-tokens must be", "Ask"),
        (errors.UsageError("is empty", "p.txt, line 2"), "error: p.txt, line 2 is empty", "is empty"),
        (errors.BudgetError("x", "prompt", "Lower max_new_tokens, or raise kv_memory."), "error: x",
         "to do: Lower --max-new-tokens, or raise --kv-memory."),
        (errors.UsageError("x", "link_rate", "Add tier = host (record=FOLDER)"), "error: x",
         "to do: Add --tier host (--record FOLDER)"),
        (errors.UsageError("x", "/a/kv_memory/b", "See kv_memory.json, my-kv_memory"), "error: x",
         "to do: See kv_memory.json, my-kv_memory"),
    ],
)  # fmt: skip
def test_options_are_named_as_they_are_typed(error: errors.ExpertFlowError, first: str, last: str) -> None:
    """A person who typed --max-new-tokens does not know `max_new_tokens`."""
    lines = outcome.describe(error).splitlines()
    assert lines[0].startswith(first) and lines[-1].endswith(last)


@pytest.mark.parametrize(
    ("words", "where", "told"),
    [
        (["serve", "--model", "/nope"], "/nope", "--model /nope"),
        (["serve", "--model=/nope"], "/nope", "--model /nope"),
        (["serve", "--predictor-file", "./a//b.npz"], "a/b.npz", "--predictor-file a/b.npz"),
        (["generate", "--chat", "p.txt"], "p.txt", "p.txt"),
        (["serve", "--batch-invariant", "--model", "m"], "m", "--model m"),
        (["trace", "m"], "m", "m"),
        (["serve"], "kernels = native", "--kernels native"),
        (["serve"], "device = cuda:1", "--device cuda:1"),
        (["serve", "--timeline", ""], "", ""),
    ],
)
def test_a_typed_value_is_named_by_its_option(words: list[str], where: str, told: str) -> None:
    """With two files on the line nobody knows which of them is meant, nor which option made the engine fail."""
    assert outcome.as_option(where, words) == told


def test_an_error_from_deep_inside_names_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(errors.CheckpointError("is a file", "/etc/passwd"), monkeypatch, "--model", "/etc/passwd")
    assert capsys.readouterr().err == "error: --model /etc/passwd is a file\n"


def test_every_error_has_a_subject() -> None:
    """`error: is empty` says nothing: whatever begins with a verb must name its place."""
    root = Path(errors.__file__).parent
    files = [file for top in ("configs", "ipc", "workers", "runtime") for file in (root / top).rglob("*.py")]
    raised = [call for file in files for call in calls_of(file, root)]
    assert len(raised) > 300
    first_words = [(where, what.partition(" ")[0], has_place) for where, what, has_place in raised]
    assert [where for where, word, has_place in first_words if word in errors.PREDICATES and not has_place] == []
    assert {word for _, word, _ in first_words} & VERBS <= errors.PREDICATES


VERBS = {"contains", "differs", "ends", "gives", "lacks", "makes", "reads", "says", "wants", "not"}
"""With which an error may begin one day."""
NAMES = {name for name in vars(errors) if name.endswith("Error")} | {"request_error"}


def calls_of(file: Path, root: Path) -> list[tuple[str, str, bool]]:
    """Every error that a file makes: where it does, the beginning of what it says, whether it names a place."""
    tree = ast.parse(file.read_text())
    texts = {
        node.targets[0].id: beginning(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES and node.args:
            what = texts.get(node.args[0].id, "") if isinstance(node.args[0], ast.Name) else beginning(node.args[0])
            place = node.args[1] if len(node.args) > 1 else None
            named = place is not None and not (isinstance(place, ast.Constant) and not place.value)
            found.append((f"{file.relative_to(root)}:{node.lineno}", what, named))
    return found


def beginning(value: ast.expr) -> str:
    if isinstance(value, ast.JoinedStr) and value.values:
        value = value.values[0]
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


@pytest.mark.parametrize(
    "module", ["expertflow.runtime.command_line.program", "tyro", "rich", "expertflow.runtime.client.client"]
)
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    """In the first third of a second it showed a traceback."""
    code = f"""if True:
        import signal, sys
        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupting())
        sys.argv = ["expertflow", "top"]
        from expertflow.__main__ import main
        sys.exit(main())"""
    for how in ("raise KeyboardInterrupt", "signal.raise_signal(signal.SIGINT)"):
        words = [sys.executable, "-P", "-c", code.replace("raise KeyboardInterrupt", how)]
        done = subprocess.run(words, capture_output=True, text=True, preexec_fn=_heed_ctrl_c, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (130, "stopped\n", "")


def _heed_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so would all that pytest starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_shape_of_an_array_names_no_option() -> None:
    """`top_k` in "[tokens, layers, top_k]" was printed as the flag --top-k."""
    assert outcome.as_typed(REMEDY) == REMEDY
