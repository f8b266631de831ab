#!/usr/bin/env bash
# Package:   tokenizers 0.23.3
# Expected:  AddedToken with an unknown option (here a misspelt lstrip) raises TypeError, or warns on standard error.
# Happens:   the option is dropped and a line is printed on standard output, where it becomes part of what the program
#            writes there (JSON, for instance). sys.stdout and the warnings module do not see it.
# What to do: pass on only content, single_word, lstrip, rstrip, normalized and special; check other names oneself.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q tokenizers==0.23.3 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import subprocess
import sys

import tokenizers

PROGRAM = """
import contextlib, io, json, tokenizers
with contextlib.redirect_stdout(io.StringIO()) as caught:
    token = tokenizers.AddedToken("x", lstripp=True)
print(json.dumps({"lstrip": token.lstrip, "caught": caught.getvalue()}))
"""
out = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], check=True, capture_output=True, text=True)
print("tokenizers", tokenizers.__version__)
print("stdout:", out.stdout.splitlines())
print("stderr:", out.stderr.splitlines())
stated = ["Ignored unknown kwarg option lstripp", '{"lstrip": false, "caught": ""}']
raise SystemExit(0 if out.stdout.splitlines() == stated and not out.stderr else 1)
PYTHON
