"""What the predictor hears of a step: with an encoder, prompts first, then what the decoder is given; what compute
hears of an output's beginning."""

from __future__ import annotations

import msgspec
import pytest
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.tests.scheduler.world import World
from expertflow.workers.scheduler.prediction_requests import PredictionRequests
from expertflow.workers.scheduler.state import SchedulerState

ROWS = [RequestRow(7, [5, 6, 7], 0, Sampling()), RequestRow(9, [8, 30, 31], 2, Sampling())]


def test_without_an_encoder_a_text_is_one() -> None:
    heard = PredictionRequests().prefill(3, ROWS)
    assert (heard.token_ids, heard.rows) == ([5, 6, 7, 8, 30, 31], [7, 7, 7, 9, 9, 9])
    assert (heard.positions, heard.sources, heard.step) == ([0, 1, 2, 0, 1, 2], 0, 3)


def test_with_an_encoder_outputs_begin_anew_behind_all_prompts() -> None:
    heard = PredictionRequests(decoder_start=2).prefill(3, ROWS)
    assert (heard.token_ids, heard.rows) == ([5, 6, 7, 8, 2, 2, 30, 31], [7, 7, 7, 9, 7, 9, 9, 9])
    assert (heard.positions, heard.sources) == ([0, 1, 2, 0, 0, 0, 1, 2], 4)


@pytest.mark.parametrize(("asked", "sent"), [(None, 9), (4, 4)])
def test_an_output_begins_as_the_model_wants_unless_the_request_says_how(asked: int | None, sent: int) -> None:
    world = World(joined=False)
    world.model = msgspec.structs.replace(world.model, first_token=9)
    world.core = SchedulerState(world.model, world.limits)
    world.start_compute()
    world.submit(sampling=Sampling(first_token=asked))
    assert world.compute is not None
    world.tick()
    assert world.compute_step()
    rows = [row for unit in world.compute.units.values() for row in unit.rows]
    assert [row.sampling.first_token for row in rows] == [sent]
