"""A bundle opened again: in `top --from`, and by the server for the page."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.bundle.file import write_bundle
from expertflow.runtime.bundle.views import MAX_UPLOAD_BYTES, bundle_views, read_small_bundle
from expertflow.runtime.commands.running.top import Top
from expertflow.tests.runtime.bundle.made import made_bundle
from expertflow.tests.runtime.http.local_server import LocalServer
from expertflow.tests.runtime.monitor.made_views import MS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "engine.zip"
    write_bundle(file, made_bundle())
    return file


def test_the_view_of_a_bundle_has_the_reasons_of_its_steps() -> None:
    (view,) = bundle_views(made_bundle())
    assert len(view.points) == 9 and view.down == ["loader"]
    assert view.waits.reasons == {"predicted too late": 20 * MS}
    assert view.heat is not None and view.requests is not None and view.requests.total == 300


def test_top_shows_a_bundle(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Top(from_=file, json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["last_second"]["decode_tokens"] == 10
    assert Top(from_=file).run() == 0
    assert "loader has ended" in capsys.readouterr().out


def test_the_server_reads_a_bundle_and_keeps_nothing(file: Path, tmp_path: Path) -> None:
    with LocalServer(None, keys=["k"]) as server:
        key, kind = {"authorization": "Bearer k"}, {"content-type": "application/zip"}
        answer = server.request("POST", "/watch/bundle", file.read_bytes(), key | kind)
        assert answer.status == 200 and answer.json["version"] == "1.2.3"
        (engine,) = answer.json["engines"]
        assert engine["wall_ms"] == 1796040000000 and len(engine["waits"]["steps"]) == 1
        assert len(answer.json["history"][""]["time_ns"]) == 9
        for body, headers, status in (
            (b"nonsense", key | kind, 400),
            (file.read_bytes(), kind, 401),
            (file.read_bytes(), key, 415),
        ):
            assert server.request("POST", "/watch/bundle", body, headers).status == status


def rewritten(file: Path, member: str, old: str, new: str) -> bytes:
    """The bundle with one text of a member replaced."""
    content = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(content, "w") as archive:
        for name in source.namelist():
            text = source.read(name).decode()
            assert name != member or old in text
            archive.writestr(name, text.replace(old, new, 1) if name == member else text)
    return content.getvalue()


def test_a_bundle_that_is_damaged_or_made_by_hand_is_refused(file: Path, tmp_path: Path) -> None:
    """By the reader, so that neither `top` nor the page fails on it."""
    whole = file.read_bytes()
    flags, method, stream = whole.index(b"PK\1\2") + 8, whole.index(b"PK\1\2") + 10, 30 + len("manifest.json")
    broken = {
        "encrypted": whole[:flags] + b"\1" + whole[flags + 1 :],
        "method is not supported": whole[:method] + b"\x63" + whole[method + 1 :],
        "decompressing": whole[:stream] + b"\xff" * 8 + whole[stream + 8 :],
        "isoformat": rewritten(file, "manifest.json", "2026-11-30T12", "soon"),
        "covers no time": rewritten(file, "history.json", "1.0,", "0.0,"),
        "no map of 4 layers with 7": rewritten(file, "activity.json", '"experts": 300', '"experts": 7'),
        "no map of 0 layers": rewritten(file, "activity.json", '"layers": 4', '"layers": 0'),
    }
    bad = tmp_path / "bad.zip"
    for what, content in broken.items():
        bad.write_bytes(content)
        with pytest.raises(UsageError, match=f"is no bundle .*{what}"):
            read_small_bundle(bad)
    version = whole.index(b"PK\1\2") + 6
    bad.write_bytes(whole[:version] + b"\xff" + whole[version + 1 :])
    with pytest.raises(UsageError, match="is no bundle"):
        read_small_bundle(bad)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """A zip of a megabyte may hold a gigabyte of zeros."""
    file = tmp_path / "big.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("timeline.json", "w") as member:
        for _ in range(MAX_UPLOAD_BYTES // (1 << 24) + 1):
            member.write(bytes(1 << 24))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match="unpacks to"):
        read_small_bundle(file)
