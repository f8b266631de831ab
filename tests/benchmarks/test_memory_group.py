"""Where a memory control group is made: versions 1 and 2, over a folder that only looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.benchmarks.limits import NoLimit, memory_group

LIMIT = 123_456_789


def own(folder: Path, text: str) -> Path:
    file = folder / "own"
    file.write_text(text)
    return file


@pytest.fixture(autouse=True)
def removable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real group is removed with the kernel's files in it."""

    def remove(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir_really()  # type: ignore[attr-defined]

    really = Path.rmdir
    monkeypatch.setattr(Path, "rmdir_really", really, raising=False)
    monkeypatch.setattr(Path, "rmdir", remove)


def test_version_1_goes_below_our_own_group(tmp_path: Path) -> None:
    parent = tmp_path / "memory" / "mine"
    parent.mkdir(parents=True)
    with memory_group(LIMIT, "bench", tmp_path, own(tmp_path, "5:cpu:/x\n4:memory:/mine\n0::/\n")) as group:
        assert group.folder.parent == parent
        assert (group.folder / "memory.limit_in_bytes").read_text() == str(LIMIT)
        (group.folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
        (group.folder / "memory.max_usage_in_bytes").write_text("77\n")
        assert (group.kills, group.peak_bytes) == (3, 77)
        command = group.command(["true"])
        assert command[-2:] == [str(group.folder / "cgroup.procs"), "true"]
    assert not group.folder.exists()


def test_version_2_goes_where_the_memory_controller_is_handed_down(tmp_path: Path) -> None:
    leaf = tmp_path / "user" / "session"
    leaf.mkdir(parents=True)
    (leaf / "cgroup.subtree_control").write_text("")
    (leaf.parent / "cgroup.subtree_control").write_text("cpu memory")
    with memory_group(LIMIT, "bench", tmp_path, own(tmp_path, "0::/user/session\n")) as group:
        assert group.folder.parent == leaf.parent
        assert (group.folder / "memory.max").read_text() == str(LIMIT)
        (group.folder / "memory.events").write_text("low 0\noom 4\noom_kill 2\n")
        assert group.kills == 2
        assert group.peak_bytes is None


def test_without_a_memory_controller_the_reason_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(NoLimit, match="no memory controller"),
        memory_group(LIMIT, "bench", tmp_path, own(tmp_path, "0::/\n")),
    ):
        pass
