"""`expertflow doctor`: findings, machine and kernels as tables and JSON, what is missing, wrong usage."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, EngineError, UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.doctor.examine import examine
from expertflow.runtime.engine.diagnosis import run_diagnosis
from expertflow.runtime.monitor.kernel_tables import machine_rows, shape_tables
from expertflow.tests.models.families import save_tiny
from expertflow.workers.kernels.cache import read_table
from expertflow.workers.kernels.report import KernelReport
from expertflow.workers.kernels.table import LEFT_FACTOR, LINEAR, ROW_STEPS, KernelTable
from rich.console import Console

TABLE = KernelTable(
    choices={"linear bfloat16 8x8": [LEFT_FACTOR] * 5 + [LINEAR] * 5},
    times_us={"linear bfloat16 8x8": [{LEFT_FACTOR: 1234.5, LINEAR: 2000.0}] * 9 + [{}]},
)
REPORT = KernelReport(
    cpu="A CPU", flags=["avx2"], threads=2, torch="2.13", capability="AVX2", caps={"ATEN_CPU_CAPABILITY": "avx2"},
    native="", variants=[], missing="no compiler", cache="/cache", table=TABLE,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    save_tiny("qwen3_moe", folder, vocab_size=6000)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "expertflow"


def shown(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_missing_is_said_with_what_is_lost() -> None:
    rows = machine_rows(REPORT, 8, 10**9)
    assert (rows["native kernels"], rows["why not"]) == ("none", "no compiler") and "AVX2" in rows["what is lost"]
    assert rows["ATEN_CPU_CAPABILITY is set"] == "avx2" and rows["cores"] == "8; compute uses 2 threads"
    there = msgspec.structs.replace(REPORT, native="amx", variants=["amx", "avx2"], missing="")
    assert machine_rows(there, 8, 10**9)["native kernels"] == "amx (this CPU can run amx, avx2)"
    assert "why not" not in machine_rows(there, 8, 10**9)


def test_the_kernel_that_is_used_is_marked() -> None:
    lines = shown(*shape_tables(TABLE).values()).splitlines()
    assert lines[0].split() == ["rows", "left_factor", "µs", "linear", "µs"]
    assert lines[1].split() == ["1", "1,235", "*", "2,000"] or lines[1].split() == ["1", "1,234", "*", "2,000"]
    assert lines[6].split() == ["32", "1,234", "2,000", "*"] and lines[10].split() == ["512", "–", "–", "*"]
    assert len(lines) == 1 + len(ROW_STEPS)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_with_a_model_its_table_is_measured_shown_kept_and_saved(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.json"
    assert parse(["doctor", "--model", str(model), "--json", "--save", str(file)]).run() == 0
    answer = json.loads(capsys.readouterr().out)
    table = answer["kernels"]["table"]
    assert list(table["choices"]) == ["linear float32 6000x48"] and table["origin"] == "measured"
    assert answer["kernels"]["threads"] >= 1 and answer["cores"] >= 1 and answer["available_bytes"] > 0
    assert answer["verdict"] in ("ok", "warning") and answer["disk"]["bytes_per_s"] > 0
    names = [finding["name"] for finding in answer["findings"]]
    assert names[:2] == ["memory", "disk"] and len(names) == len(set(names)) > 10
    assert read_table(file).choices == table["choices"]
    assert parse(["doctor", "--model", str(model), "--kernels", str(file)]).run() == 0
    out = capsys.readouterr().out
    assert "read from the file" in out and "linear float32 6000x48" in out and "native kernels" in out


@pytest.mark.timeout(240)
def test_without_a_model_the_machine_alone_is_shown(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert parse(["doctor"]).run() == 0
    out = capsys.readouterr().out
    assert str(cache) in out.replace("\n", "").replace(" ", "") and "torch" in out and not cache.exists()


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--measure"], "measure"),
        (["--save", "x.json"], "save"),
        (["--model", "examples/model", "--save", "/dev/null"], "/dev/null"),
        (["--model", "examples/model", "--measure", "--kernels", "linear"], "measure"),
        (["--kernels", "magic"], "kernels"),
        (["--kernels", "linear", "--device", "cuda"], "kernels"),
    ],
)
def test_wrong_usage_is_refused_before_anything_starts(words: list[str], where: str) -> None:
    with pytest.raises((UsageError, SystemExit)) as caught:
        parse(["doctor", *words]).run()
    if isinstance(caught.value, UsageError):
        assert where in caught.value.where


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kernels", ["auto", pytest.param("/nowhere/table.json", marks=pytest.mark.slow)])
def test_the_error_of_the_process_is_the_commands(kernels: str, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError if kernels == "auto" else (CheckpointError, UsageError)):
        run_diagnosis(Config(model=str(broken), kernels=kernels), False, tmp_path / "out", lambda progress: None)


@pytest.mark.timeout(240)
def test_a_hub_that_cannot_be_reached_is_no_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(EngineError, match="hub cannot be reached") as caught:
        examine(Config(model="somebody/unknown"), False, lambda progress: None)
    assert "connection" in caught.value.remedy and "memory" not in caught.value.remedy
