"""Surveying and loading never hold the experts: measured in a process of its own, and in the page cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.benchmarks.limits import drop_from_page_cache
from expertflow.tests.loader.page_cache import cached_pages
from expertflow.tests.models.families import tiny_config
from expertflow.tests.surveyor.child import run_python
from expertflow.tests.surveyor.skeletons import NO_FEED
from expertflow.tests.surveyor.sparse import save_sparse
from expertflow.workers.surveyor.surveyor import survey_checkpoint

MEBIBYTE = 2**20
OVERHEAD_BYTES = 60 * MEBIBYTE
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1600,
    "num_hidden_layers": 2,
    "num_experts": 16,
    "vocab_size": 8192,
}

PROBE = """
import json, sys, time
from pathlib import Path

from transformers import AutoModelForCausalLM
from transformers.models.olmoe import modeling_olmoe
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.compute.experts.routing import RoutingCollector

def peak_bytes(work):
    "Growth of the resident high-water mark while `work` runs; pages of mapped files count."
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    result = work()
    return result, high_water() - before

def high_water():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

folder = sys.argv[1]
survey, survey_bytes = peak_bytes(lambda: survey_checkpoint(folder))
model, load_bytes = peak_bytes(lambda: load_model(survey, None, RoutingCollector()))
whole, whole_bytes = peak_bytes(lambda: AutoModelForCausalLM.from_pretrained(folder))
json.dump([survey_bytes, load_bytes, whole_bytes, survey.skeleton_bytes], sys.stdout)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 MB of experts, in holes of a file."""
    folder = tmp_path_factory.mktemp("big")
    save_sparse(folder, tiny_config("olmoe", **SHAPE))
    survey = survey_checkpoint(str(folder))
    assert survey.expert_bytes * survey.expert_count > 300e6 > 6 * survey.skeleton_bytes
    return folder


@pytest.mark.slow
def test_the_peak_of_survey_and_loading_is_the_skeleton(big: Path):
    """The skeleton counts twice while it is loaded: its own memory, and the pages of the mapped file that it came from.

    The same measure shows what `from_pretrained` takes: otherwise it might be blind.
    """
    code, output, errors = run_python(["-c", PROBE, str(big)])
    assert code == 0, errors
    survey_bytes, load_bytes, whole_bytes, skeleton_bytes = json.loads(output)
    assert survey_bytes < OVERHEAD_BYTES
    assert load_bytes < 2 * skeleton_bytes + OVERHEAD_BYTES
    assert whole_bytes > 300e6


def test_only_headers_and_the_skeleton_are_read_from_disk(big: Path):
    """Read-ahead included: a page of an expert in the page cache is one that some budget does not know of."""
    from expertflow.workers.compute.experts.routing import RoutingCollector
    from expertflow.workers.compute.skeleton import load_model

    file = big / "model.safetensors"
    drop_from_page_cache([file])
    survey = survey_checkpoint(str(big))
    assert cached_pages(file) * 4096 < 4 * MEBIBYTE
    load_model(survey, NO_FEED, RoutingCollector())
    assert cached_pages(file) * 4096 < survey.skeleton_bytes + 16 * MEBIBYTE
