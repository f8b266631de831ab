"""The check that is run on a GPU: what it does where there is none, what it keeps, its targets and its page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from expertflow.benchmarks.gpu import check
from expertflow.benchmarks.gpu.page import BANNER, write_page
from expertflow.benchmarks.gpu.parts import PARTS, Part
from expertflow.benchmarks.gpu.results import begin, failure_of, judge, result_of, save_failure, save_result
from expertflow.errors import UsageError

SCRIPT = """
import sys, time
from pathlib import Path
from expertflow.benchmarks.gpu.results import save_result
name, folder = sys.argv[1:]
if name == "bad":
    sys.exit("no memory")
if name == "hangs":
    time.sleep(60)
save_result(Path(folder), name, {"holds": True})
"""


def refuse(rehearsal: bool) -> None:
    raise UsageError("torch finds no usable GPU", "device", "Check the driver")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(folder), *options])
    return check.main()


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "under_test", lambda rehearsal: None)


def test_without_a_gpu_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "under_test", refuse)
    assert run(tmp_path / "out", monkeypatch) == 2
    assert "no usable GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("anywhere")
def test_a_part_that_fails_or_hangs_loses_nothing_and_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs in a process of its own, with its own limit."""
    script, folder = tmp_path / "part.py", tmp_path / "out"
    script.write_text(SCRIPT)
    monkeypatch.setattr(check, "COMMAND", (str(script),))
    parts = [Part(name, "", dict, 0, 1 if name == "hangs" else 60) for name in ("bad", "hangs", "good")]  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(check, "PARTS", parts)
    assert run(folder, monkeypatch) == 1
    assert failure_of(folder, "bad") == "no memory" and failure_of(folder, "hangs") == "ended after 1 s, unfinished"
    assert result_of(folder, "good") == {"holds": True}
    for name in ("bad", "hangs"):
        save_result(folder, name, {"holds": True})
    assert run(folder, monkeypatch) == 0 and failure_of(folder, "bad") is None


@pytest.mark.usefixtures("anywhere")
def test_no_part_is_begun_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, "--minutes", "0") == 1
    assert {failure_of(tmp_path, part.name) for part in PARTS} == {"not begun: time was up"}


@pytest.mark.usefixtures("anywhere")
def test_a_rehearsal_and_figures_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, "--minutes", "0", "--rehearse") == 1
    assert BANNER in (tmp_path / "gpu.md").read_text()
    assert run(tmp_path, monkeypatch) == 2 and "results of a rehearsal" in capsys.readouterr().err


def test_what_is_expected_takes_less_than_ten_minutes() -> None:
    assert sum(part.expected_s for part in PARTS) < 600
    assert all(part.expected_s < part.max_s for part in PARTS)


def decode(batch: int, step_ms: float, facts: dict[str, float] | None = None, lru: float = 0.0) -> dict[str, Any]:
    times = {"step_ms": step_ms, "mean_step_ms": step_ms, "step_quartiles_ms": [step_ms, step_ms]}
    return {"batch": batch, **times, "facts": facts or {}, "lru_bytes_per_step": lru}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """4 MB a step at 1 GB/s take 4 ms; 1 ms of them shows: three quarters are hidden. LRU would have loaded 9 MB."""
    begin(tmp_path, rehearsal=False)
    facts = {"bytes_per_token": 0.0, "hit_ratio": 1.0}
    save_result(tmp_path, "r-ours-100%", {"ready_s": 20.0, "rows": [decode(8, 10.0, facts)]})
    some = facts | {"bytes_per_token": 0.5e6, "hit_ratio": 0.9}
    save_result(tmp_path, "r-ours-25%", {"ready_s": 20.0, "rows": [decode(8, 11.0, some, lru=9e6)]})
    save_result(tmp_path, "r-resident", {"ready_s": 10.0, "peak_bytes": 4e9, "rows": [decode(8, 8.0)]})
    save_result(tmp_path, "r-accelerate", {"ready_s": 10.0, "rows": [decode(8, 44.0)]})
    row = {"piece_bytes": 2**20, "pinned": 1e9, "registered": 0.9e9, "ordered": 0.8e9, "pageable": 1e8}
    rates = {"holds": False, "facts": {"device": "a GPU"}, "store_bytes": 2**29, "registering_s": 0.2, "rows": [row]}
    save_result(tmp_path, "rates", rates)
    return tmp_path


def test_targets_are_judged_by_what_was_found(folder: Path) -> None:
    """The bound is computing as fast as transformers does, or LRU's 9 ms of copies."""
    judged = {target.what: (round(target.found, 3), target.met) for target in judge(folder)}
    bound = "a step, of max(resident, LRU's bytes / rate)"
    assert judged == {
        "copies of 1 MiB from the registered store, of the plain pinned rate": (0.9, True),
        "copies of 1 MiB as the engine orders them, of the plain pinned rate": (0.8, False),
        f"model r, 100%, batch 8: {bound}": (1.25, False),
        f"model r, 25%, batch 8: {bound}": (1.222, False),
        "model r, batch 8: speed with 25% of the experts, of accelerate's": (4.0, False),
    }


def test_the_page_has_what_there_is(folder: Path) -> None:
    save_failure(folder, "exact", "Traceback\nValueError: no")
    write_page(folder)
    page = (folder / "gpu.md").read_text()
    row = "| 8 | ours-25% | 11.00 | 11.00 – 11.00 | 727 | 1.38 | 90.0 % | 4.0 | 9.0 | 36 % | 75 % | 9.00 |"
    assert row in page and BANNER not in page and "Ready after: resident 10.0 s, at most 4.00 GB; acc" in page
    assert "| **does not hold** |" in page and "| failed: ValueError: no |" in page
    assert "| 1 | 1.0 | 0.9 | 0.8 | 0.1 |" in page and "| not run |" in page
    assert "| 1.22 | <= 1.2 | **missed** |" in page and "| 0.90 | >= 0.85 | met |" in page
