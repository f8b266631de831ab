"""Several engines seen at once: nothing of one is taken for another's."""

from __future__ import annotations

import msgspec
import pytest
from expertflow.errors import EngineError
from expertflow.ipc.messages import Snapshot, StageStats
from expertflow.runtime.client.snapshots import combine_snapshots, merge_snapshots, split_snapshot
from expertflow.runtime.monitor.readings import EngineMeters, read_pairs
from expertflow.runtime.monitor.tables import readings_view, result_console


def snapshot(device: str, hits: int, time_ns: int = 5) -> Snapshot:
    down = {"compute": 3} if device == "cuda:1" else {}
    stats = StageStats(stage="compute", pid=1, epoch=1, time_ns=time_ns, counters={"hits": hits})
    facts: dict[str, dict[str, int | float | str]] = {"compute": {"device": f"{device} (its name)"} if device else {}}
    return Snapshot(
        time_ns=time_ns,
        stages={"compute": stats},
        pss_bytes={"compute": 7},
        restarts={"compute": 0},
        facts=facts,
        down=down,
    )


def test_joining_and_parting_are_inverse() -> None:
    engines = {"cuda:0": snapshot("cuda:0", 1), "cuda:1": snapshot("cuda:1", 2)}
    assert split_snapshot(merge_snapshots(engines)) == engines
    assert set(merge_snapshots(engines).stages) == {"cuda:0/compute", "cuda:1/compute"}


def test_one_engine_stays_as_it_is() -> None:
    """Who knows nothing of groups reads what was always there."""
    alone = snapshot("", 3)
    assert combine_snapshots([alone], is_group=False) == alone and split_snapshot(alone) == {"": alone}
    nothing = Snapshot(time_ns=0, stages={}, pss_bytes={}, restarts={}, facts={})
    assert split_snapshot(nothing) == {"": nothing}


def test_an_ended_engine_is_left_out_unless_it_was_the_last() -> None:
    ended = EngineError("has ended")
    both = combine_snapshots([ended, snapshot("", 1), snapshot("cuda:1", 1)], is_group=True)
    assert set(both.stages) == {"engine 1/compute", "cuda:1/compute"}
    for outcomes in ([ended], [ended, ended]):
        with pytest.raises(EngineError, match="has ended"):
            combine_snapshots(outcomes, is_group=True)
    with pytest.raises(EngineError, match="have ended"):
        combine_snapshots([], is_group=True)
    assert set(combine_snapshots([snapshot("cuda:1", 1)], is_group=True).stages) == {"cuda:1/compute"}


def test_each_engine_is_read_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Added up, one idle engine would hide behind a busy one; one that ended keeps what was seen of it."""
    before = merge_snapshots({"cuda:0": snapshot("cuda:0", 1), "cuda:1": snapshot("cuda:1", 1)})
    now = merge_snapshots({"cuda:1": snapshot("cuda:1", 9, time_ns=10)})
    meters = EngineMeters(before)
    meters.add(now)
    assert [(each.engine, each.experts.hits) for each in meters.readings(1.0)] == [("cuda:0", 0), ("cuda:1", 8)]
    readings = read_pairs(before, now)
    assert [(each.engine, each.experts.hits) for each in readings] == [("cuda:1", 9)]
    result_console().print(readings_view(readings))
    assert capsys.readouterr().out.strip().startswith("cuda:1\nstage")
    assert msgspec.json.encode(readings)
