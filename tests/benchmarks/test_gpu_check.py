"""The check that is run on a GPU: what it does where there is none, what it keeps, and its page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from expertflow.benchmarks.gpu import check
from expertflow.benchmarks.gpu.page import write_page
from expertflow.benchmarks.gpu.parts import PARTS, Part
from expertflow.benchmarks.gpu.results import failure_of, result_of, save_failure, save_result
from expertflow.errors import UsageError


def refuse(index: int) -> None:
    raise UsageError("torch finds no usable GPU", "device", "Check the driver")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(folder), *options])
    return check.main()


def test_without_a_gpu_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "require_cuda", refuse)
    assert run(tmp_path / "out", monkeypatch) == 2
    assert "no usable GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_part_that_fails_loses_nothing_and_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs in a process of its own, which here knows the one part and not the other."""
    script = tmp_path / "part.py"
    begun = "import sys, pathlib\nname, folder = sys.argv[1:]\nif name == 'bad': sys.exit('no memory')\n"
    script.write_text(begun + "pathlib.Path(folder, f'{name}.json').write_text('{\"holds\": true}')\n")
    monkeypatch.setattr(check, "require_cuda", lambda index: None)
    monkeypatch.setattr(check, "COMMAND", (str(script),))
    monkeypatch.setattr(check, "PARTS", [Part(name, "", dict, 60) for name in ("bad", "good")])  # pyright: ignore[reportArgumentType]
    assert run(tmp_path, monkeypatch) == 1
    assert failure_of(tmp_path, "bad") == "no memory" and result_of(tmp_path, "good") == {"holds": True}
    save_result(tmp_path, "bad", {"holds": True})
    assert run(tmp_path, monkeypatch) == 0 and failure_of(tmp_path, "bad") is None


def test_no_part_is_begun_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "require_cuda", lambda index: None)
    assert run(tmp_path, monkeypatch, "--minutes", "0") == 1
    assert {failure_of(tmp_path, part.name) for part in PARTS} == {"not begun: time was up"}


def decode(rows: int, step_ms: float, facts: dict[str, float]) -> dict[str, Any]:
    return {"step_ms": step_ms, "tokens": [[5]] * rows, "facts": facts}


def test_the_page_has_what_there_is(tmp_path: Path) -> None:
    """4 MB a step at 1 GB/s take 4 ms; 1 ms of them shows: three quarters are hidden."""
    facts = {"bytes_per_token": 0.0, "hit_ratio": 1.0}
    save_result(tmp_path, "r-ours-100%", {"rows": [decode(2, 10.0, facts)]})
    save_result(tmp_path, "r-ours-25%", {"rows": [decode(2, 11.0, facts | {"bytes_per_token": 2e6, "hit_ratio": 0.9})]})
    save_result(tmp_path, "r-resident", {"rows": [decode(0, 8.0, {})]})
    rate = {"piece_mib": 1, "pinned": 1e9, "registered": 0.9e9, "pageable": 1e8}
    save_result(tmp_path, "rates", {"device": "a GPU", "holds": False, "rows": [rate]})
    save_failure(tmp_path, "exact", "Traceback\nValueError: no")
    write_page(tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    assert "| 2 | ours-25% | 11.00 | 1.38 | 90.0 % | 4.0 | 36 % | 75 % |" in page
    assert "| rates | **does not hold** |" in page and "| exact | failed: ValueError: no |" in page
    assert "| 1 | 1.0 | 0.9 | 0.1 |" in page and "| mutants | not run |" in page
