"""How the processor of a figure is described, and libraries kept from its newer instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.benchmarks.machine import RESTRICTED, cpu_kind, restrict_instructions
from expertflow.benchmarks.report import write_json

INFO = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Some Processor @ 2.1GHz
flags\t\t: fpu avx avx2 avx512f amx_bf16

processor\t: 1
model name\t: Another
"""


@pytest.fixture(autouse=True)
def unrestricted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test set the variables; they are as before afterwards."""
    for name in RESTRICTED["avx2"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_processor_is_described_with_what_matters_to_products(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(INFO)
    assert cpu_kind(file) == "Some Processor @ 2.1GHz; family 6 model 143; AVX2, AVX-512, AMX BF16"
    restrict_instructions("avx2")
    assert cpu_kind(file).endswith("; ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2")


def test_without_a_description_there_is_a_name_still(tmp_path: Path) -> None:
    assert cpu_kind(tmp_path / "none")


def test_torch_heeds_the_restriction() -> None:
    restrict_instructions("avx2")
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() in ("AVX2", "DEFAULT")
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"


def test_results_name_the_processor_and_keep_one_that_they_have(tmp_path: Path) -> None:
    file = tmp_path / "out" / "x.json"
    write_json(file, {"rows": []})
    assert f'"cpu": "{cpu_kind()}"' in file.read_text()
    write_json(file, [{"a": 1}, {"a": 2, "cpu": "another"}])
    text = file.read_text()
    assert f'"cpu": "{cpu_kind()}"' in text and '"cpu": "another"' in text
