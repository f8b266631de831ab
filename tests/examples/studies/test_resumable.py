"""Folders of results: a cell is used again by a run with the same settings alone, and damage is told with its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.recommend.parts import PartStore
from expertflow.examples.studies.resumable import ResultFolder, save_rows


def results(folder: Path) -> ResultFolder:
    return ResultFolder(folder, 0, lambda line: None)


def test_a_cell_of_other_settings_is_refused_and_never_taken_for_a_result(tmp_path: Path) -> None:
    settings = {"questions": "a", "sizes": (1, 2)}
    assert results(tmp_path).run("cell", lambda: {"value": 1}, settings) == {"value": 1}
    assert results(tmp_path).run("cell", lambda: {"value": 2}, settings) == {"value": 1}
    with pytest.raises(UsageError, match=r"other settings \(questions\)") as error:
        results(tmp_path).run("cell", lambda: {"value": 2}, {**settings, "questions": "b"})
    assert error.value.where == str(tmp_path / "cells" / "cell.json")


def test_a_cell_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = results(tmp_path)
    (tmp_path / "cells" / "cell.json").write_text('{"value": 1}')
    assert folder.run("cell", lambda: {"value": 2}, {"questions": "a"}) == {"value": 1}


@pytest.mark.parametrize("text", ["null", "[]", "{}", "[" * 100_000, '{"value": '])
def test_a_damaged_cell_is_told_with_its_file(tmp_path: Path, text: str) -> None:
    folder = results(tmp_path)
    (tmp_path / "cells" / "cell.json").write_text(text)
    with pytest.raises(UsageError) as error:
        folder.run("cell", lambda: {"value": 2})
    assert error.value.where == str(tmp_path / "cells" / "cell.json") and "Remove it" in error.value.remedy


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        results(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written"):
        save_rows(tmp_path, [{"value": 1}])
    folder = results(tmp_path)
    (tmp_path / "cells" / "cell.fresh").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        folder.run("cell", lambda: {"value": 1})


def test_a_part_that_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    store = PartStore(tmp_path, {"data": "a"})
    (tmp_path / "one.json").write_text('{"settings": [1], "result": 2}')
    with pytest.raises(UsageError, match="is no part"):
        store.get("one", dict)
    (tmp_path / "two.part").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        store.get("two", dict)
