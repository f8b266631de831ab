#!/usr/bin/env bash
# Package:   wordllama 0.4.0.post1
# Expected:  embed(texts, norm=True) gives finite vectors; a text without words, such as a missing description, has
#            the vector 0, as it has without norm.
# Happens:   its row is NaN (0 divided by its length 0, with a warning). Dot products with it are NaN, and argmax then
#            takes the empty text for the best match of every query.
# What to do: leave norm off and divide by max(length, a small number) yourself.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q wordllama==0.4.0.post1 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from wordllama import WordLlama, wordllama

encoder = WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)  # the files of the wheel
texts = ["a film about dogs", "", "tax law"]
plain = encoder.embed(texts)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    unit = encoder.embed(texts, norm=True)
    best = int(np.argmax(unit @ encoder.embed("dog", norm=True)[0]))
print("wordllama", version("wordllama"))
print("rows without NaN, norm off:", np.isfinite(plain).all(axis=1).tolist())
print("rows without NaN, norm on: ", np.isfinite(unit).all(axis=1).tolist())
print(f"best match of 'dog' by dot product and argmax: {texts[best]!r}")
as_told = np.isfinite(plain).all() and np.isfinite(unit).all(axis=1).tolist() == [True, False, True] and best == 1
raise SystemExit(0 if as_told else 1)
PYTHON
