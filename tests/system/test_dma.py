"""link = dma: slots that refer to the host store give the bits of a resident run, and faults of the link are caught."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from expertflow import Client, Config, Supervisor
from expertflow.ipc.shared.slot_references import SlotReferences
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.schedules import Digests, Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader import fills
from expertflow.workers.loader.transfer.expert_sources import Chunk
from expertflow.workers.loader.transfer.files import BounceBuffer
from expertflow.workers.loader.transfer.link import EmulatedLink
from expertflow.workers.loader.transfer.store_references import StoreReferences
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

BATCH = 4
LATE_S = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture(scope="module")
def survey(folder: Path) -> Survey:
    return survey_checkpoint(str(folder), dtype="float32")


def digests(survey: Survey, slots: int, rate: int = 0) -> list[bytes]:
    """Bits of all logits of a schedule; `rate`: over a link of so many bytes a second, else by copies."""
    link = EmulatedLink(rate, time.monotonic_ns, time.sleep) if rate else None
    seen = Digests()
    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), seen.choose, tier="host", link=link) as runtime:
        drive(Driver(runtime, survey.vocabulary), BATCH, seed=BATCH)
    return seen.seen


@pytest.fixture(scope="module")
def resident(survey: Survey) -> list[bytes]:
    return digests(survey, survey.expert_count)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("rate", [10**7, 10**12])
def test_logits_have_the_bits_of_a_resident_run(survey: Survey, resident: list[bytes], share: float, rate: int) -> None:
    assert digests(survey, int(share * survey.expert_count), rate) == resident


@pytest.mark.timeout(240)
def test_an_engine_gives_the_tokens_of_transformers_also_after_a_loader_died(folder: Path) -> None:
    """A new loader finds the references that the old one has set (R9)."""
    prompts, reference = random_prompts(5, VOCABULARY), Reference(folder)
    config = Config.load(
        "cpu-host", model=folder, link="dma", link_rate="20MB", link_latency_us=50.0, expert_memory="30%"
    )
    with Supervisor(config) as engine, Client(engine.address) as client:
        facts = client.stats().facts["loader"]
        assert facts["link"] == "emulated, no core copies, 20MB a second"
        for _ in range(2):
            done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
            assert [list(each.token_ids) for each in done] == [reference.greedy(each, 12) for each in prompts]
            engine.kill("loader")


class Early(StoreReferences):
    """Says that an expert is there as soon as it is ordered; the link brings it later."""

    def _wait(self, arrival: object, count_bytes: int, ordered_ns: int, opens: bool) -> Chunk:
        def wait(bounce: BounceBuffer) -> None:
            late = threading.Timer(LATE_S, arrival.take_chunk)  # pyright: ignore[reportAttributeAccessIssue]
            late.daemon = True
            late.start()

        return wait


class Uncleared(Early):
    """Leaves the last expert in a slot that is filled anew, too."""

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        references, slot = SlotReferences(memory), base_bytes // self._survey.stride_bytes
        before = references.key(slot)
        chunks = super().chunks(memory, base_bytes, layer, expert)
        references.set(slot, layer if before is None else before)
        return chunks


def test_a_slot_used_before_its_time_is_an_error(survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: the step fails and gives no token."""
    monkeypatch.setattr(fills, "StoreReferences", Early)
    with pytest.raises(AssertionError, match="EngineError.* no transfer into it has ended"):
        digests(survey, survey.expert_count // 3, 10**12)


def test_a_stale_slot_changes_bits(survey: Survey, resident: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fills, "StoreReferences", Uncleared)
    assert digests(survey, survey.expert_count // 3, 10**12) != resident


def test_swapped_experts_change_bits(survey: Survey, resident: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    set_reference: Callable[[SlotReferences, int, int], None] = SlotReferences.set
    monkeypatch.setattr(SlotReferences, "set", lambda self, slot, key: set_reference(self, slot, key ^ 1))
    assert digests(survey, survey.expert_count // 3, 10**12) != resident
