"""What the predictor hears of a step: with an encoder, prompts first, then what the decoder is given."""

from __future__ import annotations

from expertflow.ipc.messages import Row, Sampling
from expertflow.workers.scheduler.forecasts import Foreteller

ROWS = [Row(7, [5, 6, 7], 0, Sampling()), Row(9, [8, 30, 31], 2, Sampling())]


def test_without_an_encoder_a_text_is_one() -> None:
    heard = Foreteller().prefill(3, ROWS)
    assert (heard.token_ids, heard.rows) == ([5, 6, 7, 8, 30, 31], [7, 7, 7, 9, 9, 9])
    assert (heard.positions, heard.sources, heard.step) == ([0, 1, 2, 0, 1, 2], 0, 3)


def test_with_an_encoder_outputs_begin_anew_behind_all_prompts() -> None:
    heard = Foreteller(decoder_start=2).prefill(3, ROWS)
    assert (heard.token_ids, heard.rows) == ([5, 6, 7, 8, 2, 2, 30, 31], [7, 7, 7, 9, 7, 9, 9, 9])
    assert (heard.positions, heard.sources) == ([0, 1, 2, 0, 0, 0, 1, 2], 4)
