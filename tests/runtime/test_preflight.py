"""What is refused before an engine starts: a newcomer's mistakes must not cost the start of four processes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import expertflow
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, EngineError, ExpertFlowError, RequestError, UsageError
from expertflow.ipc.messages import Progress
from expertflow.ipc.shared.open_files import ENGINE_FILES
from expertflow.runtime.client.client import Client
from expertflow.runtime.client.images import ImagePrompt
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.commands.trace import Trace
from expertflow.runtime.commands.verify import Verify
from expertflow.runtime.engine import preflight
from expertflow.runtime.engine.group import EngineGroup
from expertflow.runtime.engine.preflight import impossible_prompts
from expertflow.runtime.engine.starting import running_engine
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.checkpoint.broken import no_override

MODEL = Path(expertflow.__file__).parent / "examples" / "model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 8, "text_config": {"vocab_size": 10}}')
    return folder


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        ({"model": "/nope"}, "no such folder", "/nope"),
        ({"model": "nope"}, "no such folder", "nope"),
        ({"predictor_file": "/no/p.npz"}, "names /no/p.npz, which does not exist", "predictor_file"),
        ({"predictor": "path"}, "needs a trained file", "predictor_file"),
        ({"hints": "gates", "gates_file": "/no/g"}, "does not exist", "gates_file"),
        ({"predictor": "oracle", "oracle_routes": "/no/o"}, "does not exist", "oracle_routes"),
    ],
)
@pytest.mark.usefixtures("no_process")
def test_what_is_not_there_is_said_before_a_process_starts(
    options: dict[str, Any], what: str, where: str, model: Path
) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        Supervisor(Config.load(**{"model": str(model), **options})).start()
    assert refused.value.where == where and refused.value.remedy


@pytest.mark.parametrize("name", ["config.json", "."])
def test_a_folder_that_may_not_be_read_is_named(name: str, model: Path) -> None:
    secret = model / name
    mode = secret.stat().st_mode
    secret.chmod(0)
    try:
        with no_override(), pytest.raises(CheckpointError, match="config.json: cannot be read .Permission denied"):
            preflight.check_named_files(Config(model=str(model)))
    finally:
        secret.chmod(mode)


@pytest.mark.usefixtures("no_process")
def test_a_group_is_checked_likewise() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        EngineGroup(Config.load(model="/nope", device="fake:0,fake:1", kv_memory="1MiB")).start()


@pytest.mark.usefixtures("no_process")
def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ExpertFlowError, match=r"has no config\.json"):
        Supervisor(Config.load(model=tmp_path)).start()


@pytest.mark.parametrize("kind", [Supervisor, EngineGroup])
def test_what_is_no_configuration(kind: Any) -> None:
    with pytest.raises(UsageError, match="must be a Config, not str"):
        kind("a/model")


@pytest.mark.usefixtures("no_process")
def test_few_files_may_be_open(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """ZeroMQ ended the process with one line that told no remedy."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 20))
    for start in (Supervisor(Config.load(model=model)).start, lambda: Client(model)):
        with pytest.raises(EngineError) as refused:
            start()
        if refused.value.where == "ulimit -n":
            assert "only 20 files" in refused.value.what and "ulimit -n 1024" in refused.value.remedy
        else:
            assert "no engine answers" in refused.value.what
    monkeypatch.setattr(resource, "getrlimit", lambda which: (ENGINE_FILES, 4096))
    preflight.check_before_start(Config.load(model=model))


def test_ulimit_in_a_shell() -> None:
    words = f"ulimit -n 20; exec {sys.executable} -P -m expertflow generate --model {MODEL} --prompt a"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: only 20 files may be open at once" in done.stderr and "to do: Allow more" in done.stderr


def test_prompts_of_which_none_can_run(model: Path) -> None:
    where = str(model)
    assert [str(error) for error in impossible_prompts([[10], [-1, 2]], where)] == [
        "prompt: token id 10 at position 0 is not in the vocabulary of 10. Was it made by this model's tokenizer?",
        "prompt: token id -1 at position 0 is not in the vocabulary of 10. Was it made by this model's tokenizer?",
    ]
    assert "no tokenizer.json" in str(impossible_prompts(["text"], where)[0])
    assert impossible_prompts([[10], [9]], where) == [], "one of them can run"
    assert impossible_prompts([ImagePrompt("a", [])], where) == []
    assert impossible_prompts([[10]], "owner/name") == [], "what the hub has is not known before"


@pytest.mark.usefixtures("no_process")
def test_commands_refuse_them_before_an_engine_starts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.load(model=str(model))
    generate = Generate(prompt=["11", "3 12"], ids=True, engine=config)
    assert generate.run() == 2
    told = capsys.readouterr().err
    assert "token id 11" in told and "where: --prompt 1" in told and "token id 12" in told and "--prompt 2" in told
    for command in (
        Trace(folder=tmp_path / "trace", prompt=["11"], ids=True, engine=config),
        Verify(prompt=["11"], ids=True, engine=config),
    ):
        with pytest.raises(RequestError, match="token id 11") as refused:
            command.run()
        assert refused.value.where == "--prompt 1"
    assert not (tmp_path / "trace").exists()


def test_a_wrong_name_is_refused_before_a_start_is_announced() -> None:
    told: list[Progress] = []
    engine = running_engine(Config(model="/nope"), on_progress=told.append)
    with pytest.raises(UsageError, match="no such folder"), engine:
        pass
    assert told == []
