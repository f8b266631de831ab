"""Write the tasks for lm-eval: choices between ends of a verse, and continuations that transformers has written.

python lm_eval_targets.py MODEL TEXT FOLDER
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DOCUMENTS = 24
CHOICES = 4
NEW_TOKENS = 12
CHOICE_TASK = """\
task: verse_ends
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/choices.jsonl"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{ends}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
TEXT_TASK = """\
task: verse_text
dataset_path: json
dataset_kwargs: {data_files: {test: "FOLDER/texts.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{end}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: TOKENS, do_sample: false, temperature: 0}
metric_list:
  - {metric: exact_match}
"""


def main(model: str, text: Path, folder: Path) -> None:
    torch.set_num_threads(1)  # several wait for each other on a busy machine
    verses = [line.partition(" ")[2] for line in text.read_text().splitlines() if re.match(r"\d+ \w+", line)]
    halves = [cut(verse.split()) for verse in verses if 12 <= len(verse.split()) <= 30]
    random.Random(0).shuffle(halves)
    write(folder / "choices.jsonl", [choice(halves, index) for index in range(DOCUMENTS)])
    write(folder / "texts.jsonl", continued(model, [start for start, _ in halves[:DOCUMENTS]]))
    (folder / "choices.yaml").write_text(CHOICE_TASK.replace("FOLDER", str(folder)))
    (folder / "texts.yaml").write_text(TEXT_TASK.replace("FOLDER", str(folder)).replace("TOKENS", str(NEW_TOKENS)))


def cut(words: list[str]) -> tuple[str, str]:
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def choice(halves: list[tuple[str, str]], index: int) -> dict[str, Any]:
    """Return a verse's start with its own end among those of other verses."""
    ends = [halves[index + DOCUMENTS * other][1] for other in range(CHOICES)]
    right = index % CHOICES
    ends[0], ends[right] = ends[right], ends[0]
    return {"start": halves[index][0], "ends": ends, "right": right}


def continued(folder: str, starts: list[str]) -> list[dict[str, str]]:
    """Return transformers' greedy answers; every second one is spoilt, so that the right score is one half."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = []
    for index, start in enumerate(starts):
        messages = [{"role": "user", "content": start}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        end = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        written.append({"start": start, "end": end if index % 2 else "nothing of the kind"})
    return written


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
