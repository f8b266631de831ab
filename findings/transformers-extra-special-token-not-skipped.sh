#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with tokenizers 0.23.3)
# Expected:  decode(…, skip_special_tokens=True) leaves out every token that all_special_tokens lists.
# Happens:   an AddedToken in extra_special_tokens stays in the text unless it was made with special=True. As bos_token
#            the same AddedToken is left out, and so is an extra token that is given as a string. Tokenizers that
#            transformers 4.33 saved with such a token are concerned: decoded there, the token is left out.
# What to do: state special=True in every AddedToken of extra_special_tokens.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q transformers==5.23.0 tokenizers==0.23.3 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import transformers
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast


def outcome(**tokens):
    """Return whether `<x>` counts as special, and the text of `a <x>` without special tokens."""
    words = Tokenizer(models.WordLevel({"a": 0, "<x>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **tokens)
    return "<x>" in tokenizer.all_special_tokens, tokenizer.decode([0, 1], skip_special_tokens=True)


cases = [
    ('extra_special_tokens=["<x>"]', outcome(extra_special_tokens=["<x>"]), "a"),
    ('bos_token=AddedToken("<x>")', outcome(bos_token=AddedToken("<x>")), "a"),
    ('extra_special_tokens=[AddedToken("<x>")]', outcome(extra_special_tokens=[AddedToken("<x>")]), "a <x>"),
    ("the same with special=True", outcome(extra_special_tokens=[AddedToken("<x>", special=True)]), "a"),
]
print("transformers", transformers.__version__)
for name, (listed, text), _ in cases:
    print(f"{name:41} in all_special_tokens: {listed}, decoded: {text!r}")
raise SystemExit(0 if all(listed and text == stated for _, (listed, text), stated in cases) else 1)
PYTHON
