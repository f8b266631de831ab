"""Tiny models with the routing that they really had, and mixed copies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.runtime.quality.contributions import measure_contributions
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.workers.quantize.importance import Importance, count_loads, decoder_layers, read_routing_of
from expertflow.workers.quantize.mixing import Mixture
from expertflow.workers.quantize.plan import CHANNEL
from expertflow.workers.quantize.writing import MixedCopy, quantise_mixed
from expertflow.workers.surveyor.surveyor import survey_folder
from expertflow.workers.traces.routing import read_routing
from expertflow.workers.traces.trace import Trace, write_npz

FAMILIES = ("olmoe", "deepseek_v3")
"""MoE layers 0 to 2, and (behind a dense layer) 1 and 2."""
SHARES = {"olmoe": 0.4, "deepseek_v3": 0.5}
"""One layer of each."""
Models = dict[str, tuple[Path, Path]]
"""Folder of the model, and its trace."""


def made(family: str, folder: Path) -> tuple[Path, Path]:
    """A model, and a trace of it."""
    source = folder / family
    save_tiny(family, source, dtype=torch.bfloat16)
    write_npz(recorded(source), folder / f"{family}.npz")
    return source, folder / f"{family}.npz"


def recorded(source: Path) -> Trace:
    """The routing of the model over random prompts, as it ran."""
    survey = survey_folder(source)
    prompts = torch.randint(3, VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(3))
    rows = [RequestRow(row, tokens.tolist(), 0, Sampling()) for row, tokens in enumerate(prompts)]
    with LocalRuntime(survey, survey.expert_count) as runtime:
        _, routing = runtime.run(RunStep(number=1, unit=1, admit=rows))
    routes = None if routing is None else read_routing(routing, survey.layers, survey.experts)
    assert routes is not None
    return Trace(
        routes=routes.astype(np.uint16),
        token_ids=prompts.reshape(-1).numpy(),
        offsets=np.arange(0, prompts.numel() + 1, 20),
        expert_count=survey.experts,
        model=survey.fingerprint,
    )


def saved_models(folder: Path) -> Models:
    """Each family's model, and a trace of it."""
    return {family: made(family, folder) for family in FAMILIES}


def mixture(source: Path, trace: Path, share: float) -> Mixture:
    survey = survey_folder(source)
    layers, recording = decoder_layers(survey), read_routing_of(survey, trace)
    contributions = measure_contributions(survey, list(layers), recording, lambda *progress: None)
    return Mixture(Importance(list(layers.values()), count_loads(recording, trace), contributions), share)


def mixed(source: Path, trace: Path, destination: Path, share: float) -> MixedCopy:
    return quantise_mixed(source, destination, CHANNEL, mixture(source, trace, share), lambda *progress: None)
