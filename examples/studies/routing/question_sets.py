"""Questions in the published formats of VQA-v2, MMBench and SEED-Bench about test scenes, written and read as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from expertflow.errors import UsageError

from ..pope.images import SceneImage, scene_images
from ..scenes.drawing import draw_scene, scene_png
from ..scenes.questions import (
    LETTERS,
    ChoiceQuestion,
    colour_question,
    count_question,
    identity_question,
    random_choice,
    random_presence,
    shape_question,
)
from ..scoring.bad_rows import BadRows
from ..scoring.mmbench import MmbenchRow, read_mmbench, rotations, write_mmbench
from ..scoring.seed_bench import SeedQuestion, read_seed, write_seed
from ..scoring.vqa import VqaQuestion, read_vqa

SET_SEED = 77
VQA_QUESTIONS, VQA_ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
MMBENCH_TABLE, SEED_FILE = "MMBench_DEV_EN.tsv", "SEED-Bench.json"
_PEOPLE = 10
_TYPES = {"identity": 2, "attribute": 3, "shape": 3, "counting": 5}
"""Question types of SEED-Bench."""


@dataclass(frozen=True)
class QuestionSets:
    """The three sets as read from their files; an image is a path or the bytes of a file."""

    vqa: list[VqaQuestion]
    mmbench: list[MmbenchRow]
    seed: list[SeedQuestion]
    images: Path


def write_sets(folder: Path, scenes: int) -> None:
    """Write the files of all three sets about so many scenes, and the scenes' images."""
    generator = np.random.default_rng(SET_SEED)
    images = scene_images(scenes, SET_SEED)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        draw_scene(image.scene).save(folder / "images" / _image_name(number))
    _write_vqa(folder, images, generator)
    rows = [_mmbench_row(number, image, generator) for number, image in enumerate(images)]
    write_mmbench(folder / MMBENCH_TABLE, (turn for row in rows for turn in rotations(row)))
    write_seed(folder / SEED_FILE, [_seed_question(number, image, generator) for number, image in enumerate(images)])


def read_sets(folder: Path, bad: BadRows) -> QuestionSets:
    """Return the sets of a folder with the published files.

    Raises UsageError if a file is missing, BadRowError for a bad row, or one whose image is missing.
    """
    if not (folder / MMBENCH_TABLE).is_file():
        raise UsageError(f"holds no {MMBENCH_TABLE}", str(folder), "Name the folder of the published files")
    images = folder / "images"
    return QuestionSets(
        read_vqa(
            folder / VQA_QUESTIONS, folder / VQA_ANNOTATIONS, bad, lambda asked: vqa_image(images, asked).is_file()
        ),
        read_mmbench(folder / MMBENCH_TABLE, bad),
        read_seed(folder / SEED_FILE, bad, lambda name: (images / name).is_file()),
        images,
    )


def vqa_image(images: Path, question: VqaQuestion) -> Path:
    """Return the path of the question's image, named as COCO names it."""
    return images / f"COCO_val2014_{question.image_id:012d}.jpg"


def _image_name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def _write_vqa(folder: Path, images: list[SceneImage], generator: np.random.Generator) -> None:
    questions, annotations = [], []
    for number, image in enumerate(images):
        for text, answer, kind in _vqa_questions(image, generator):
            ids = {"question_id": 10 * number + len(questions) % 10, "image_id": number}
            questions.append({**ids, "question": text})
            people = [{"answer": answer, "answer_confidence": "yes", "answer_id": turn + 1} for turn in range(_PEOPLE)]
            types = {"answer_type": kind, "question_type": " ".join(text.split()[:3]).lower()}
            annotations.append({**ids, **types, "answers": people, "multiple_choice_answer": answer})
    (folder / VQA_QUESTIONS).write_text(json.dumps({"questions": questions}), encoding="utf-8")
    (folder / VQA_ANNOTATIONS).write_text(json.dumps({"annotations": annotations}), encoding="utf-8")


def _vqa_questions(image: SceneImage, generator: np.random.Generator) -> list[tuple[str, str, str]]:
    """Return (text, answer, answer type) of two questions for presence and one for each other property."""
    asked = []
    for _ in range(2):
        presence = random_presence(image.scene, generator)
        asked.append((presence.prompt.split("\n")[0], presence.answer.split(",")[0].lower(), "yes/no"))
    for ask, kind in ((colour_question, "other"), (shape_question, "other"), (count_question, "number")):
        if (question := ask(image.scene, generator)) is not None:
            asked.append((question.question, question.options[question.right], kind))
    return asked


def _mmbench_row(number: int, image: SceneImage, generator: np.random.Generator) -> MmbenchRow:
    question = random_choice(image.scene, generator)
    options = dict(zip(LETTERS, question.options, strict=True))
    png, right = scene_png(image.scene), LETTERS[question.right]
    return MmbenchRow(number, png, question.question, "", options, right, question.kind, "perception")


def _seed_question(number: int, image: SceneImage, generator: np.random.Generator) -> SeedQuestion:
    asks = (identity_question, colour_question, shape_question, count_question)
    question: ChoiceQuestion = asks[number % 4](image.scene, generator) or count_question(image.scene, generator)
    texts = dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), question.options, strict=True))
    ids = {"question_id": str(number), "data_type": "image", "data_id": _image_name(number)}
    kind, right = _TYPES[question.kind], LETTERS[question.right]
    return SeedQuestion(question_type_id=kind, question=question.question, answer=right, **ids, **texts)
