#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with tokenizers 0.23.3)
# Expected:  special_tokens_map.json may describe a token by an object ("content", "lstrip", …), in a list as well as
#            alone. transformers 4.33 wrote lists of such objects there, under "additional_special_tokens". (Its folders
#            load, because it wrote the tokens into tokenizer_config.json as well.)
# Happens:   a named token may be an object, with or without the key "special". In a list, "extra_special_tokens" raises
#            TypeError if an object has the key "special", and "additional_special_tokens" raises it in any case.
# What to do: write the list as plain strings, or as objects without "special" under "extra_special_tokens".
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q transformers==5.23.0 tokenizers==0.23.3 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

folder = Path("tokenizer")
folder.mkdir()
Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "<x>": 2}, unk_token="a")).save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
options = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
plain = {"content": "<x>", **options}


def outcome(special_tokens):
    """Return the special tokens after loading, or the error."""
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens))
    try:
        return str(PreTrainedTokenizerFast.from_pretrained(folder).all_special_tokens)
    except TypeError as error:
        return f"TypeError: {error}"


error = "TypeError"
cases = [
    ("bos_token, with special", {"bos_token": plain | {"special": True}}, "['<x>']"),
    ("extra_special_tokens, strings", {"extra_special_tokens": ["<x>"]}, "['<x>']"),
    ("extra_special_tokens, without special", {"extra_special_tokens": [plain]}, "['<x>']"),
    ("extra_special_tokens, with special", {"extra_special_tokens": [plain | {"special": True}]}, error),
    ("additional_special_tokens, strings", {"additional_special_tokens": ["<x>"]}, "['<x>']"),
    ("additional_special_tokens, without special", {"additional_special_tokens": [plain]}, error),
]
print("transformers", transformers.__version__)
seen = [outcome(tokens) for _, tokens, _ in cases]
for (name, _, _), result in zip(cases, seen):
    print(f"{name:43} {result}")
raise SystemExit(0 if all(result.startswith(case[2]) for case, result in zip(cases, seen)) else 1)
PYTHON
