#!/usr/bin/env bash
# Package:   torch-rechub 0.9.0
# Expected:  two models made of the same list of features are two models: training one leaves the other as it was.
# Happens:   a feature keeps the embedding table that its first model made, and hands it to every later one. A
#            comparison of models in a loop trains one common table: each model begins where the one before ended.
# What to do: make the features anew for each model.
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
from torch_rechub.models.ranking import DCN, DeepFM

torch.manual_seed(0)
features = [SparseFeature(name, vocab_size=10, embed_dim=4) for name in ("user", "item")]
first = DCN(features, 2, {"dims": [16, 8]})
second = DeepFM(features, features, {"dims": [16, 8]})
columns = {"user": torch.arange(10), "item": torch.arange(10)}


def scores():
    """Return what the second model says of ten pairs."""
    with torch.no_grad():
        return second.eval()(columns)


before = scores()
optimiser = torch.optim.Adam(first.parameters(), lr=0.05)
for _ in range(20):
    loss = torch.nn.functional.binary_cross_entropy(first.train()(columns), torch.arange(10) % 2.0)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
shared = [name for name, weight in second.named_parameters() if any(weight is other for other in first.parameters())]
moved = float((scores() - before).abs().max())
print("torch-rechub", version("torch-rechub"), "torch", torch.__version__)
print("weights that both models own:", ", ".join(shared))
print(f"scores of the second model, never trained, moved by up to {moved:.3f} while the first one was trained")
raise SystemExit(0 if len(shared) == 2 and moved > 0.001 else 1)
PYTHON
