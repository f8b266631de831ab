"""Training, in seconds: what is learned is better than what needs no learning."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from expertflow.tests.predictor.paths import SHAPE, made_up_trace
from expertflow.workers.predictor.base.token_table import count_tokens
from expertflow.workers.predictor.judging.report import compare
from expertflow.workers.predictor.path.file import compact_counts
from expertflow.workers.predictor.t5.file import FIRST, T5Shape
from expertflow.workers.predictor.training.loop import Effort, group_by_length
from expertflow.workers.predictor.training.path import hide_routing, train_path
from expertflow.workers.predictor.training.sequences import Sequences, split_development
from expertflow.workers.predictor.training.t5 import train_t5
from hypothesis import given
from hypothesis import strategies as st

EFFORT = Effort(minutes=1, epochs=40)


@pytest.fixture(autouse=True)
def one_thread_as_before() -> None:
    torch.set_num_threads(1)


def test_a_path_predictor_learns(tmp_path: FilePath) -> None:
    learned, held_out = made_up_trace(sequences=60).split(0.2)
    told: list[float] = []
    trained = train_path(learned, EFFORT, lambda done, what: told.append(done), SHAPE)
    report = compare(partial(trained.forecaster, held_out.vocabulary), learned, held_out)
    assert report.decode.recall > max(report.table.recall, report.previous.recall) + 0.15
    assert report.decode.recall > report.prefill.recall + 0.1, "earlier routing tells the topic"
    assert told == sorted(told) and told[-1] == 1
    written = trained.write(tmp_path / "p.npz", report)
    assert written.file_bytes == (tmp_path / "p.npz").stat().st_size


def test_the_transformer_of_the_paper_learns(tmp_path: FilePath) -> None:
    learned, held_out = made_up_trace(sequences=60).split(0.2)
    shape = T5Shape(
        layers=SHAPE.layers, experts=SHAPE.experts, top_k=SHAPE.top_k, vocabulary=FIRST + 20,
        inner=32, blocks=1, heads=2, head=8, window=10,
    )  # fmt: skip
    trained = train_t5(learned, Effort(minutes=1, epochs=60), lambda done, what: None, shape)
    report = compare(partial(trained.forecaster, held_out.vocabulary), learned, held_out, prompt=0.5)
    assert report.decode.recall > report.popularity.recall + 0.1
    assert trained.write(tmp_path / "p.npz", report).file_bytes > 0


def test_the_paper_states_the_size_of_its_transformer() -> None:
    from expertflow.workers.predictor.t5.module import T5Module

    module = T5Module(T5Shape(layers=1, experts=1, top_k=1, vocabulary=32_128))
    weights = sum(value.numel() for value in module.transformer.parameters())
    assert weights == pytest.approx(3.78e6, rel=0.01)


def test_development_sequences_are_not_learned_from() -> None:
    trace = made_up_trace(sequences=30)
    counts, seen = count_tokens(trace)
    sequences = Sequences(trace, counts, seen, torch.zeros(SHAPE.width), 0)
    learned, judged = split_development(sequences.pieces(), np.random.default_rng(0))
    assert {one.sequence for one in learned}.isdisjoint(one.sequence for one in judged)
    assert len(learned) + len(judged) == len(sequences.pieces())
    assert 1 <= len(judged) <= 4


def test_long_sequences_are_cut_and_nothing_is_lost() -> None:
    trace = made_up_trace(sequences=2, length=1200)
    counts, seen = count_tokens(trace)
    pieces = Sequences(trace, counts, seen, torch.zeros(SHAPE.width), 0).pieces()
    assert sum(piece.tokens for piece in pieces) == trace.tokens
    assert max(piece.tokens for piece in pieces) == 512
    assert [piece.sequence for piece in pieces] == [0, 0, 0, 1, 1, 1]


def test_hidden_routing_is_hidden_from_a_token_on() -> None:
    trace = made_up_trace(sequences=30)
    counts, seen = count_tokens(trace)
    sequences = Sequences(trace, counts, seen, torch.zeros(SHAPE.width), 0)
    batch = next(sequences.batches(sequences.pieces()))
    hidden = hide_routing(batch, 1.0, np.random.default_rng(0)).has_routing
    assert (hidden.int().diff(dim=1) <= 0).all(), "once hidden, always hidden"
    assert 0 < hidden.float().mean() < 0.5
    assert hide_routing(batch, 0.0, np.random.default_rng(0)).has_routing.equal(batch.has_routing)


def test_the_table_keeps_what_was_seen_most(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = made_up_trace()
    counts, seen = count_tokens(trace)
    monkeypatch.setattr("expertflow.workers.predictor.path.file.MAX_ENTRIES", 40)
    table = compact_counts(counts, seen, np.arange(len(seen)))
    assert 1 <= len(table.tokens) < np.count_nonzero(seen)
    assert seen[table.tokens].min() >= np.median(seen)


def test_counts_are_scaled_to_bytes() -> None:
    trace = made_up_trace(sequences=1, length=1000)
    same = replace(trace, token_ids=np.zeros(1000, np.int64))
    counts, seen = count_tokens(same)
    table = compact_counts(counts, seen, np.arange(1))
    assert table.seen.tolist() == [255]
    assert np.allclose(table.counts[0] / 255, counts[0] / 1000, atol=0.003)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 3))
def test_groups_hold_everything_once_and_stay_small(lengths: list[int], most: int, seed: int) -> None:
    for rng in (None, np.random.default_rng(seed)):
        groups = list(group_by_length(lengths, 50, most, rng))
        assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
        for group in groups:
            assert len(group) <= most
            assert len(group) == 1 or len(group) * max(lengths[place] for place in group) <= 50
