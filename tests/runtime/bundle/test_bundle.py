"""A bundle keeps what it was given, says when it cannot be read, and has neither secrets nor names."""

from __future__ import annotations

import os
import resource
import stat
import zipfile
from pathlib import Path

import pytest
from expertflow.errors import EngineError, UsageError
from expertflow.ipc.messages import Activity, OpenRequest, OpenRequests, Span, StageSpans
from expertflow.runtime.bundle.contents import MEMBERS, Bundle
from expertflow.runtime.bundle.file import is_bundle, read_bundle, write_bundle
from expertflow.runtime.bundle.gather import gather_bundle, installed_versions
from expertflow.runtime.bundle.masking import MASK, mask_activity, mask_values
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.commands.running.bundle import Bundle as BundleCommand
from expertflow.runtime.commands.running.why import Why
from expertflow.tests.runtime.bundle.made import made_bundle
from expertflow.tests.runtime.fakes import fake_engine, wait_until


def gathered(seconds: float = 0, timeline: str = "") -> Bundle:
    with fake_engine(("compute", "loader"), timeline=timeline) as engine:
        with Watcher(engine.address) as watcher:
            wait_until(lambda: len(watcher.history()[""]) > 1)
        bundle = gather_bundle(engine.address, seconds, lambda progress: None)
        with Watcher(engine.address) as watcher:
            live = watcher.history()[""]
    assert bundle.history[""] == live[: len(bundle.history[""])], "the history is that of the engine"
    return bundle


def test_a_bundle_is_read_as_it_was_gathered(tmp_path: Path) -> None:
    file = tmp_path / "engine.zip"
    bundle = gathered(seconds=5)  # stages note spans in one second of three
    write_bundle(file, bundle)
    assert read_bundle(file) == bundle
    assert is_bundle(file) and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(bundle.snapshot.stages) == {"compute", "loader"} and len(bundle.history[""]) >= 2
    assert "expertflow_stage_restarts_total" in bundle.metrics
    assert bundle.configurations[""]["model"] == "nowhere" and bundle.machine.findings
    assert {stage for stage, span in bundle.spans() if span.name == "turn"} == {"compute", "loader"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["engine.zip"], "no unfinished file stays"


def test_the_timeline_of_the_engine_goes_in_whole(tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    bundle = gathered(timeline=str(file))
    assert bundle.manifest.timeline == "file"
    assert file.read_bytes().startswith(bundle.timeline)


def test_a_long_timeline_keeps_its_newest_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at any byte it must still be one, with the names of its stages."""
    file = tmp_path / "timeline.json"
    monkeypatch.setattr("expertflow.runtime.bundle.gather.MAX_TIMELINE_BYTES", 300)
    head = b'[\n{"ph":"M","name":"process_name","pid":1,"tid":0,"args":{"name":"compute"}}'
    events = [b'{"ph":"X","name":"turn","pid":1,"tid":0,"ts":%d,"dur":1,"args":{}}' % number for number in range(50)]
    with fake_engine(("compute",)) as engine:
        file.write_bytes(b",\n".join([head, *events]))
        bundle = gather_bundle(engine.address, 0, lambda progress: None, file)
    spans = list(bundle.spans())
    assert 2 < len(spans) < 6 and spans[-1] == ("compute", Span("turn", 49_000, 50_000, 0))


def test_files_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "engine.zip"
    with pytest.raises(UsageError, match="cannot be read"):
        read_bundle(file)
    file.write_text("hello")
    assert not is_bundle(file)
    for member, text, what in (
        ("other.txt", "hello", "is no bundle"),
        (MEMBERS["manifest"], '{"format": 99}', "has the format 99"),
        (MEMBERS["manifest"], '{"format": 1}', "is no bundle"),
        (MEMBERS["manifest"], "[]", "is no bundle"),
    ):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, text)
        with pytest.raises(UsageError, match=what):
            read_bundle(file)


def test_no_engine_and_no_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine"):
        BundleCommand(file=tmp_path / "a.zip", address="/no/such/place").run()
    with pytest.raises(UsageError, match="cannot be written: it is in no folder"):
        BundleCommand(file=tmp_path / "nowhere" / "a.zip", address="/no/such/place").run()


def test_only_a_file_is_replaced_and_nothing_unfinished_stays(tmp_path: Path) -> None:
    """A folder, or a device such as /dev/stdout, must stay what it is."""
    folder, pipe, pointer = tmp_path / "folder", tmp_path / "pipe", tmp_path / "pointer"
    folder.mkdir()
    os.mkfifo(pipe)
    pointer.symlink_to(pipe)
    for path in (folder, pipe, pointer, folder / ("x" * 300)):
        with pytest.raises(UsageError, match="cannot be written"):
            write_bundle(path, made_bundle())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "pipe", "pointer"]
    assert pipe.is_fifo() and pointer.is_symlink() and not list(folder.iterdir())


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk; the signal that comes with it is ignored by Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UsageError, match="cannot be written: File too large"):
            write_bundle(tmp_path / "a.zip", made_bundle())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_secrets_and_the_home_folder_are_masked() -> None:
    """Configurations are read by colleagues, and pasted into issues."""
    options = {
        "model": "/home/jo/models/tiny",
        "api_key": "abc",
        "hub_token": "abc",
        "trace": "https://jo:hunter2@host/x",
        "record": "sk-abcdefgh12345678 and hf_ABCDEFGHijkl",
        "batch_size": 4,
        "revision": "",
    }
    masked = mask_values(options, Path("/home/jo"))
    assert masked == {
        "model": "~/models/tiny",
        "api_key": MASK,
        "hub_token": MASK,
        "trace": f"https://{MASK}@host/x",
        "record": f"{MASK} and {MASK}",
        "batch_size": 4,
        "revision": "",
    }


def test_requests_lose_the_names_that_clients_gave_them() -> None:
    """A client may put anything into an id, a part of the prompt included."""
    requests = [OpenRequest("Dear Ann", "decode", 3, 4, 5, 6, 7, "Ann"), OpenRequest("b", "waiting", 1, 0, 5, 6)]
    activity = Activity(time_ns=1, requests=OpenRequests(time_ns=1, total=2, requests=requests))
    masked = mask_activity(activity).requests
    assert masked is not None
    assert [(request.request_id, request.user) for request in masked.requests] == [("0", MASK), ("1", "")]
    assert masked.requests[0].prompt_tokens == 3
    assert mask_activity(Activity(time_ns=1, spans=[StageSpans(1, "compute", [])])).requests is None


def test_versions_are_those_that_are_installed() -> None:
    versions = installed_versions()
    assert versions["torch"] and versions["msgspec"] and "." in versions["python"]


def test_why_refuses_a_zip_that_is_no_bundle(tmp_path: Path) -> None:
    file = tmp_path / "engine.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(UsageError, match="is no bundle"):
        Why(timeline=file).run()
