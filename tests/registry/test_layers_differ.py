"""Models whose layers give a token to different numbers of experts: Hunyuan's `moe_topk` may be a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.errors import CheckpointError
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.checkpoint.broken import edit_config
from expertflow.tests.registry.tiny import tiny_config
from expertflow.tests.registry.trial import CAUGHT, TOLERANCE, exchanged_experts, live, reference
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.model.probing.tiny_sizes import VOCABULARY
from expertflow.workers.predictor.training.loop import Effort
from expertflow.workers.predictor.training.path import train_path
from expertflow.workers.predictor.training.t5 import train_t5
from expertflow.workers.surveyor.sizing import model_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.reading import read_trace
from expertflow.workers.traces.routing import read_routing
from transformers import AutoModelForCausalLM

TOP_KS = [1, 3, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("differing")
    config = tiny_config("hunyuan_v1_moe")
    config.update({"num_hidden_layers": len(TOP_KS), "moe_topk": TOP_KS})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def survey(folder: Path) -> Survey:
    return survey_checkpoint(str(folder))


@torch.inference_mode()
def test_layers_that_take_different_numbers_of_experts_are_exact(folder: Path, survey: Survey) -> None:
    assert survey.top_k == max(TOP_KS)
    resident, few, theirs = live(survey, survey.expert_count), live(survey, 3), reference(folder)
    assert resident.error(theirs) <= TOLERANCE and not resident.other_tokens(theirs)
    assert few.digests == resident.digests
    assert resident.hints == "all"
    assert live(exchanged_experts(survey), survey.expert_count).error(theirs) > CAUGHT


@torch.inference_mode()
def test_what_was_used_repeats_the_first_expert(folder: Path, survey: Survey) -> None:
    prompt = [3, 5, 9, 11, 12]
    with LocalRuntime(survey, survey.expert_count) as runtime:
        _, used = runtime.run(RunStep(number=0, unit=0, admit=[RequestRow(0, prompt, 0, Sampling())]))
    assert used is not None
    routes = read_routing(used, survey.layers, survey.experts)
    assert routes is not None and routes.shape == (len(prompt), len(TOP_KS), max(TOP_KS))
    for layer, (own, theirs) in enumerate(zip(routes.swapaxes(0, 1), library_routes(folder, prompt), strict=True)):
        assert np.array_equal(own[:, : TOP_KS[layer]], theirs)
        assert (own[:, TOP_KS[layer] :] == own[:, :1]).all()


def library_routes(folder: Path, prompt: list[int]) -> list[np.ndarray]:
    """Of each layer: [tokens, its own top-k]."""
    model, chosen = reference(folder), []
    for module in model.modules():
        if type(module).__name__ == "HunYuanMoEV1Gate":
            module.register_forward_hook(lambda module, inputs, output: chosen.append(output[2].numpy()))
    model(input_ids=torch.tensor([prompt]))
    return chosen


@pytest.mark.parametrize("model_type", ["olmoe", "zaya"])
def test_where_the_library_knows_one_number_only_others_are_refused(tmp_path: Path, model_type: str) -> None:
    """`per_layer_config` may state it for any model, but no class of the library reads it there."""
    tiny_config(model_type).save_pretrained(tmp_path)
    edit_config(tmp_path, per_layer_config={"1": {"num_experts_per_tok": 3}})
    with pytest.raises(CheckpointError, match="num_experts_per_tok"):
        model_sizes(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("predictor", ["previous", "matrices", "table"])
def test_a_traced_engine_learns_from_them(folder: Path, tmp_path: Path, predictor: str) -> None:
    """Through all processes: tokens of transformers, weights of nothing where an expert is repeated."""
    prompts = random_prompts(6, VOCABULARY)
    config = Config.load(
        model=folder, expert_memory="40%", batch_size=4, predictor=predictor, trace=str(tmp_path / "trace")
    )
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
    whole = Reference(folder)
    assert [list(each.token_ids) for each in done] == [whole.greedy(prompt, 12) for prompt in prompts]
    trace = read_trace(tmp_path / "trace")
    effort = Effort(minutes=0.1, epochs=1)
    train_path(trace, effort, lambda done, what: None).save(tmp_path / "path.npz")
    train_t5(trace, effort, lambda done, what: None).save(tmp_path / "paper.npz")
    assert trace.weights is not None
    for layer, own in enumerate(TOP_KS):
        assert (trace.weights[:, layer, own:] == 0).all() and (trace.weights[:, layer, :own] > 0).all()
