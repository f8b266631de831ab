#!/usr/bin/env bash
# Package:   torch-rechub 0.9.0
# Expected:  a ranking model scores a batch of one (user, item) pair, and gives it the score it has in a larger batch.
# Happens:   DeepFM, DCN and the plain DCN-V2 do. DCN-V2 as made by default, with the mixture of low-rank experts,
#            raises IndexError: its cross network drops the dimension of the batch when that is 1. A data set whose
#            last batch has one row ends in it, too.
# What to do: score such a row twice in one batch, and take the first; let no batch of training have one row.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 torch-rechub==0.9.0 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DCN, DCNv2, DeepFM

MLP = {"dims": [16, 8]}


def features():
    """Return two fields of ten categories each."""
    return [SparseFeature(name, vocab_size=10, embed_dim=4) for name in ("user", "item")]


def score(model, rows):
    """Return the scores of the first rows, or the error."""
    columns = {"user": torch.arange(rows), "item": torch.arange(rows)}
    try:
        with torch.no_grad():
            return model.eval()(columns)
    except IndexError as error:
        return f"IndexError: {error}"


torch.manual_seed(0)
both = features()
models = {
    "DeepFM": DeepFM(both, both, dict(MLP)),
    "DCN": DCN(features(), 2, dict(MLP)),
    "DCNv2, plain": DCNv2(features(), 2, dict(MLP), use_low_rank_mixture=False),
    "DCNv2, default": DCNv2(features(), 2, dict(MLP)),
}
print("torch-rechub", version("torch-rechub"), "torch", torch.__version__)
alone = {name: score(model, 1) for name, model in models.items()}
together = {name: score(model, 3) for name, model in models.items()}
for name in models:
    print(f"{name}: one row {alone[name]}, three rows {together[name]}")
agree = all(torch.allclose(alone[name], together[name][:1]) for name in list(models)[:3])
raised = isinstance(alone["DCNv2, default"], str) and together["DCNv2, default"].shape == (3,)
raise SystemExit(0 if agree and raised else 1)
PYTHON
