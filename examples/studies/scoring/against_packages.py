"""Check the four scorers against two published packages, of which only the scorers' own functions are run.

pip download --no-deps --dest WHEELS lmms-eval==0.7.3 ms-vlmeval==0.0.20
python -m expertflow.examples.studies.scoring.against_packages --wheels WHEELS
"""

from __future__ import annotations

import ast
import copy
import os
import random
import re
import statistics
import string
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tyro
from expertflow.errors import UsageError
from rich.console import Console

from . import choices, contractions, pope, seed_bench, vqa

_YES_NO = ("Yes", "No", "yes", "no", "NO", "not", "none", "None", "dog", "there", "is", "I", "can't", "sure", "")
_JOINTS = (" ", ", ", ". ", "! ", "\n", "-", ",", ".", "/", "  ", "; ", ": ")
_VQA_WORDS = (
    *("a", "the", "two", "none", "1,000", "3.5", "2.", ".5", "red", "Red", "t-shirt", "dont", "isnt", "shed've"),
    *("somebody'd", "ow's'at", "(left)", "yes", "no", "10", "ten", "50%", "u.s.a.", "what?", "1,2,3", "an"),
    *sorted(contractions.CONTRACTIONS),
)
_CHOICE_WORDS = ("A", "B", "C", "D", "Z", "(A)", "B.", "the", "answer", "is", "red", "circle", "blue", "a", "*C*", "D:")


_MATCHING = ("can_infer_option", "can_infer_text", "can_infer")


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    wheels: Path
    """Folder of the two wheels."""
    cases: int = 20_000
    """Random answers for each scorer."""
    seed: int = 1


def load_functions(wheels: Path, wheel: str, member: str, names: tuple[str, ...] = (), **known: Any) -> SimpleNamespace:
    """Return the functions and classes of one file of a wheel, without its imports; `names`: only these.

    Raises UsageError if there is no such wheel.
    """
    files = sorted(wheels.glob(f"{wheel}-*.whl"))
    if not files:
        raise UsageError(f"holds no wheel of {wheel}", str(wheels), "Download it as this module's first lines say")
    tree = ast.parse(zipfile.ZipFile(files[-1]).read(member))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    tree.body = [node for node in tree.body if not names or getattr(node, "name", "") in names]
    scope: dict[str, Any] = {"re": re, "os": os, "string": string, "cp": copy, "statistics": statistics, **known}
    exec(compile(_without_annotations(tree), member, "exec"), scope)
    return SimpleNamespace(**scope)


def _without_annotations(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
    return tree


def random_texts(words: tuple[str, ...], options: Options, longest: int = 7) -> Iterator[str]:
    """Yield texts of random words and marks."""
    dice = random.Random(options.seed)
    for _ in range(options.cases):
        pieces = [dice.choice(words) + dice.choice(_JOINTS) for _ in range(dice.randint(1, longest))]
        yield "".join(pieces)[: dice.choice((None, -1))]


def check_pope(options: Options) -> int:
    """Compare the exact reading with lmms-eval's, and the reading by words with VLMEvalKit's."""
    theirs = load_functions(options.wheels, "lmms_eval", "lmms_eval/tasks/pope/utils.py")
    misc = load_functions(options.wheels, "ms_vlmeval", "vlmeval/smp/misc.py", ("process_punctuation",))
    rating = load_functions(
        options.wheels,
        "ms_vlmeval",
        "vlmeval/dataset/utils/yorn.py",
        ("YOrN_Extraction",),
        process_punctuation=misc.process_punctuation,
    )
    words = {"Yes": "yes", "No": "no", "Unknown": "unknown"}
    texts = list(random_texts(_YES_NO, options))
    differing = sum(pope.read_words(text) != words[rating.YOrN_Extraction(text)] for text in texts)
    return differing + _compare_pope_figures(theirs, texts)


def _compare_pope_figures(theirs: SimpleNamespace, texts: list[str]) -> int:
    """Compare the figures of all answers together."""
    labels = ["yes" if place % 2 == 0 else "no" for place in range(len(texts))]
    docs = [{"answer": label, "question_id": place} for place, label in enumerate(labels)]
    results = [theirs.pope_process_results(doc, [text]) for doc, text in zip(docs, texts, strict=True)]
    questions = [
        pope.PopeQuestion(place, "", "", "yes" if label == "yes" else "no") for place, label in enumerate(labels)
    ]
    mine = pope.score_pope(questions, texts, "exact")
    pairs = (
        (mine.accuracy, theirs.pope_aggregate_accuracy([each["pope_accuracy"] for each in results])),
        (mine.precision, theirs.pope_aggregate_precision([each["pope_precision"] for each in results])),
        (mine.recall, theirs.pope_aggregate_recall([each["pope_recall"] for each in results])),
        (mine.f1, theirs.pope_aggregate_f1_score([each["pope_f1_score"] for each in results])),
    )
    return sum(abs(one - two) > 1e-12 for one, two in pairs)


def check_vqa(options: Options) -> int:
    """Compare normalisation and accuracy with lmms-eval's, which always normalises."""
    metric = load_functions(options.wheels, "lmms_eval", "lmms_eval/tasks/_task_utils/vqa_eval_metric.py")
    theirs = load_functions(
        options.wheels,
        "lmms_eval",
        "lmms_eval/tasks/vqav2/utils.py",
        EvalAIAnswerProcessor=metric.EvalAIAnswerProcessor,
    )
    texts = list(random_texts(_VQA_WORDS, options, longest=3))
    differing = 0
    for place in range(0, len(texts) - 10, 11):
        people = tuple(texts[place + 1 + turn % 4] for turn in range(10))
        answer = texts[place + place % 4]
        answers = [{"answer": text, "answer_id": number} for number, text in enumerate(people)]
        expected = theirs.vqav2_process_results({"answers": answers, "question_id": 0}, [answer])
        differing += abs(expected["exact_match"] - vqa.vqa_accuracy(answer, people, always_normalise=True)) > 1e-12
        differing += expected["submission"]["answer"] != vqa.normalise_answer(answer.replace("\n", " ").strip())
    return differing


def check_choices(options: Options) -> int:
    """Compare the option found in an answer with VLMEvalKit's."""
    log = SimpleNamespace(info=lambda text: None)
    theirs = load_functions(options.wheels, "ms_vlmeval", "vlmeval/utils/matching_util.py", _MATCHING, logger=log)
    offered = {"A": "red circle", "B": "blue", "C": "circle", "D": "Red star"}
    return sum(
        choices.find_option(text, offered) != (theirs.can_infer(text, dict(offered)) or choices.NO_OPTION)
        for text in random_texts(_CHOICE_WORDS, options)
    )


def check_seed(options: Options) -> int:
    """Compare the letter of an answer with lmms-eval's."""
    theirs = load_functions(options.wheels, "lmms_eval", "lmms_eval/tasks/seedbench/utils.py", ("seed_process_result",))
    doc = {"answer": "B", "data_type": "image", "question_id": "1"}
    return sum(
        seed_bench.first_letter(text) != theirs.seed_process_result(doc, [text])["seed_all"]["pred"]
        for text in random_texts(_CHOICE_WORDS, options)
    )


CHECKS: dict[str, Callable[[Options], int]] = {
    "POPE": check_pope,
    "VQA-v2": check_vqa,
    "MMBench": check_choices,
    "SEED-Bench": check_seed,
}


def main(options: Options) -> None:
    """Print the differing cases of each scorer; end with an error if there are any."""
    console = Console()
    counts = {name: check(options) for name, check in CHECKS.items()}
    for name, differing in counts.items():
        console.print(f"{name}: {differing} of {options.cases} random answers differ")
    if any(counts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
