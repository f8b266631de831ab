"""Prompts in the forms of the paper's workloads, made of the built-in model's held-out text.

The data sets themselves are not shipped, and a model of some million parameters has nothing to answer them with. Their
templates and lengths are kept; what they ask about is text that the model knows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from expertflow.runtime.prompt_sources.workloads import Format, record_prompts
from tokenizers import Tokenizer

from ..models import EXAMPLES

Prompts = list[str] | list[list[int]]
"""Texts, or token ids."""
FORMS: dict[Format, int] = {"alpaca": 60, "wmt16": 100, "xsum": 400, "aime": 160}
"""Characters of text in a record of each form."""


def held_out_text() -> str:
    """Return the half of the held-out text from which no gates are trained."""
    text = (EXAMPLES / "held_out.txt").read_text()
    return text[len(text) // 2 :]


def ask(folder: Path, form: Format, block: int, rows: int) -> Prompts:
    """Return the prompts of a block for the model in `folder`.

    A model without a tokenizer, whose weights are random, gets them as the built-in model's token ids.
    """
    texts = prompts(held_out_text(), form, block, rows)
    if (folder / "tokenizer.json").exists():
        return texts
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "model" / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in texts]


def prompts(text: str, form: Format, block: int, rows: int) -> list[str]:
    """Return `rows` prompts of a form; others for every block, and the same ones at every call."""
    rng = random.Random(f"{form} {block} {rows}")
    length = FORMS[form]
    starts = [rng.randrange(len(text) - length) for _ in range(rows)]
    records = [_record(form, " ".join(text[start : start + length].split())) for start in starts]
    content = "\n".join(json.dumps(record) for record in records).encode()
    return [prompt for prompt, _ in record_prompts(content, form, form)]


def _record(form: Format, text: str) -> dict[str, object]:
    match form:
        case "alpaca":
            return {"instruction": f"Continue the text: {text}", "input": ""}
        case "wmt16":
            return {"translation": {"en": text, "de": ""}}
        case "xsum":
            return {"document": text}
        case _:
            return {"problem": text}
