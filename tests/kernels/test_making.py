"""The table of a model: measured once, kept by machine and shapes, found again, forced, or read from a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from expertflow.configs.user_cache import cache_folder
from expertflow.errors import EngineError, UsageError
from expertflow.ipc.messages import Progress
from expertflow.workers.kernels import making
from expertflow.workers.kernels.cache import read_table, write_table
from expertflow.workers.kernels.dispatch import Kernels
from expertflow.workers.kernels.making import ModelParts, TableMaker
from expertflow.workers.kernels.measuring import Measured, Measuring
from expertflow.workers.kernels.native import NativeKernels
from expertflow.workers.kernels.table import LEFT_FACTOR, LINEAR, NATIVE, KernelTable, LinearShape
from torch import nn
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

WIDTH, INNER = 640, 320
EXPERT = {"gate_up_proj": [2 * INNER, WIDTH], "down_proj": [WIDTH, INNER]}
BIG = LinearShape(1024, WIDTH, "bfloat16")


def parts(outputs: int = 1024) -> ModelParts:
    """Return a model of one large and one small linear layer beside its experts."""
    config = OlmoeConfig(hidden_size=WIDTH, intermediate_size=INNER, num_experts=2, num_experts_per_tok=1)
    with torch.device("meta"):
        experts = OlmoeExperts(config)
        skeleton = nn.Sequential(nn.Linear(WIDTH, outputs), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8))
    return ModelParts(skeleton, experts, EXPERT, {f"{i}.weight": torch.bfloat16 for i in range(3)})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the shapes of every measurement; a measurement itself takes no time and is as told."""
    seen: list[list[str]] = []

    def run(self: Any) -> Measured:
        seen.append([work.key for work in self._works])
        self._report(1, 1)
        choices = {work.key: [LINEAR] * 10 for work in self._works}
        return Measured(choices, {key: [{LINEAR: 1.0}] * 10 for key in choices}, True)

    monkeypatch.setattr(Measuring, "run", run)
    return seen


def make(kernels: str = "auto", model: ModelParts | None = None, again: bool = False) -> KernelTable:
    told: list[Progress] = []
    return TableMaker(kernels, told.append, again).make(model or parts(), "bfloat16")


def test_a_table_is_measured_once_and_kept(measurements: list[list[str]], cache: Path) -> None:
    first, second = make(), make()
    assert (first.origin, second.origin, len(measurements)) == ("measured", "cache", 1)
    assert second.choices == first.choices and second.times_us == first.times_us
    assert [BIG.key] == [key for key in measurements[0] if key.startswith("linear")], "the small one is overhead"
    assert min(make().seconds for _ in range(5)) < 0.1, "K5"
    assert make(again=True).origin == "measured" and make().origin == "cache"
    assert len(list(cache.glob("kernels-*.json"))) == 1


@pytest.mark.parametrize(
    "change",
    ["torch", "threads", "capability", "caps", "native", "flags", "shapes"],
)
def test_anything_that_changes_speed_is_another_table(
    change: str, measurements: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    model = parts()
    match change:
        case "torch":
            monkeypatch.setattr(torch, "__version__", "9.9")
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        case "capability":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE")
        case "caps":
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        case "native":
            monkeypatch.setattr(making, "native_name", lambda native: "another build")
        case "flags":
            monkeypatch.setattr("expertflow.workers.kernels.machine.cpu_flags", lambda: frozenset({"new"}))
        case "shapes":
            model = parts(2048)
    assert make(model=model).origin == "measured" and len(measurements) == 2
    assert make(model=model).origin == "cache"


@pytest.mark.parametrize("harm", ["torn", "foreign", "unknown kernel", "few steps", "empty", "folder"])
def test_a_file_that_is_no_table_is_measured_again(harm: str, measurements: list[list[str]], cache: Path) -> None:
    table = make()
    (file,) = cache.glob("kernels-*.json")
    match harm:
        case "torn":
            file.write_bytes(file.read_bytes()[:100])
        case "foreign":
            write_table(file, msgspec.structs.replace(table, machine={**table.machine, "cpu": "another"}))
        case "unknown kernel":
            write_table(file, msgspec.structs.replace(table, choices={BIG.key: ["magic"] * 10}))
        case "few steps":
            write_table(file, msgspec.structs.replace(table, choices={BIG.key: [LINEAR]}))
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.unlink()
            file.mkdir()
    assert make().origin == "measured" and len(measurements) == 2
    assert make().origin == ("measured" if harm == "folder" else "cache")


@pytest.mark.parametrize("obstacle", ["a file", "no home"])
def test_a_cache_that_cannot_be_written_costs_a_remark(
    obstacle: str, measurements: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    maker = TableMaker("auto", lambda progress: None)
    assert maker.make(parts(), "bfloat16").choices[BIG.key] == [LINEAR] * 10
    (notice,) = maker.notices
    assert "timed again at every start" in notice and len(measurements) == 1


def test_a_table_of_a_busy_machine_is_not_kept(measurements: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Measuring.run
    monkeypatch.setattr(Measuring, "run", lambda self: run(self)._replace(is_reliable=False))
    maker = TableMaker("auto", lambda progress: None)
    assert not maker.make(parts(), "bfloat16").is_reliable and "busy" in maker.notices[0]
    assert make().origin == "measured" and len(measurements) == 2


def test_a_model_of_small_weights_is_not_measured(measurements: list[list[str]]) -> None:
    config = OlmoeConfig(hidden_size=8, intermediate_size=8, num_experts=2, num_experts_per_tok=1)
    small = ModelParts(nn.Linear(8, 8), OlmoeExperts(config), {"gate_up_proj": [16, 8], "down_proj": [8, 8]}, {})
    assert make(model=small).origin == "rule" and measurements == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_two_processes_at_once_one_measures(cache: Path) -> None:
    """The other waits for it and finds its table, unless the machine was too busy to keep one."""
    words = [sys.executable, "-P", "-m", "expertflow.tests.kernels.one_of_two"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    answers = sorted(process.communicate(timeout=280)[0].decode().strip() for process in both)
    assert answers == ["cache", "measured"] if list(cache.glob("kernels-*.json")) else ["measured", "measured"]
    assert not list(cache.glob(".kernels-*")), "no half-written file is left"


def test_a_forced_kernel_is_not_measured(measurements: list[list[str]]) -> None:
    table = make(LEFT_FACTOR)
    assert table.origin == "forced" and measurements == []
    assert len(table.choices) == 3 and all(choices == [LEFT_FACTOR] * 10 for choices in table.choices.values())


def test_a_file_is_taken_as_it_is(measurements: list[list[str]], tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    write_table(file, KernelTable(choices={BIG.key: [LINEAR] * 9 + [LEFT_FACTOR]}, machine={"cpu": "another"}))
    table = make(str(file))
    assert (table.origin, measurements) == ("file", [])
    assert table.kernel_for(BIG, 511) == LINEAR and table.kernel_for(BIG, 512) == LEFT_FACTOR


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"choices": {"a": ["linear"]}}', b'{"choices": 1}'])
def test_a_bad_file_is_a_typed_error(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        make(str(file))
    assert str(file) in caught.value.where and "doctor" in caught.value.remedy
    with pytest.raises(UsageError):
        read_table(file)


def test_without_native_kernels_they_cannot_be_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeKernels, "open", classmethod(lambda cls, isa="": None))
    with pytest.raises(UsageError, match="kernels = native: are missing"):
        make(NATIVE)
    write_table(tmp_path / "t.json", KernelTable(isa="avx2", choices={BIG.key: [NATIVE] * 10}))
    with pytest.raises(UsageError, match="names the native kernels"):
        make(str(tmp_path / "t.json"))
    with pytest.raises(EngineError, match="the native kernels were there"):
        Kernels(KernelTable(isa="avx2", choices={BIG.key: [NATIVE] * 10}))
