"""Questions of a run: own and published sets, missing images, and the part of a set for cells of speed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.pope.cells import BATCHES, BUDGETS, SYSTEMS, speed_cells, whole_cells
from expertflow.examples.studies.pope.images import write_scene_set
from expertflow.examples.studies.pope.questions import images_with_unseen_pairs, load_questions, subset
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scene_set(tmp_path, count=5)
    return tmp_path


def test_a_part_asks_each_file_for_a_present_and_an_absent_object(folder: Path) -> None:
    questions = load_questions(folder, BadRows())
    few = subset(questions, images=2)
    assert len(questions) == 90 and len(few) == 12
    assert Counter((each.rule, each.question.label) for each in few) == {
        (rule, label): 2 for rule in ("random", "popular", "adversarial") for label in ("yes", "no")
    }
    assert len({each.question.object_name for each in few[:6:2]}) == 3, "another object of the image for each file"
    assert len(images_with_unseen_pairs(folder)) == 2


def test_a_published_set_is_found_by_its_names_and_subfolders(folder: Path) -> None:
    for file in folder.glob("scenes_pope_*.json"):
        file.rename(folder / file.name.replace("scenes", "coco"))
    (folder / "images").rename(folder / "val2014")
    (folder / "objects.json").unlink()
    assert len(load_questions(folder, BadRows())) == 90 and not images_with_unseen_pairs(folder)


def test_a_question_without_its_image_is_refused_or_counted(folder: Path) -> None:
    (folder / "images" / "scene_000001.png").unlink()
    with pytest.raises(BadRowError, match=r"scenes_pope_random.json, line 7: names the image 'scene_000001.png'"):
        load_questions(folder, BadRows())
    bad = BadRows(skip=True)
    assert len(load_questions(folder, bad)) == 72 and bad.counts["scenes_pope_random.json"] == 6


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coco_pope_random.json"):
        load_questions(tmp_path, BadRows())


def test_telling_cells_come_first_and_none_twice() -> None:
    cells = [*whole_cells(["m"]), *speed_cells(["m"], seeds=2)]
    assert len({cell.name for cell in cells}) == len(cells) == 2 + 2 * 2 * len(BUDGETS) * len(BATCHES) * len(SYSTEMS)
    first = speed_cells(["m"], seeds=1)[: 2 * len(SYSTEMS)]
    assert {(cell.budget, cell.batch) for cell in first} == {("25%", 8)}
    assert {cell.source for cell in first} == {"link", "disk"}
