"""The order of lines: a permutation, always the same, in which common prefixes and common experts are neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import expertflow
import numpy as np
import pytest
from expertflow.runtime.batch_files import features
from expertflow.runtime.batch_files.features import WIDTH, PromptText, TokenVectors, line_features, prompt_text
from expertflow.runtime.batch_files.ordering import LineFeatures, deal_rows, order_lines, order_vectors, prefix_digests
from expertflow.runtime.batch_files.work_order import find_forecast, input_order, shared_order
from expertflow.runtime.text.codec import TextCodec
from expertflow.tests.runtime.batch_files.jobs import indexed, request_text
from expertflow.workers.predictor.path.token_forecast import load_token_forecast
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
HELD_OUT = MODEL.parent / "held_out.txt"


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 1000), st.integers(1, 5))
def test_every_line_runs_once(count: int, seed: int, prefixes: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, 4)).astype(np.float32) * rng.integers(0, 2, (count, 1))
    made = LineFeatures(rng.integers(0, prefixes, (count, 3)).astype(np.uint64), vectors)
    order = order_lines(made)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == order_lines(made).tolist()


def neighbours_of_a_kind(kinds: np.ndarray) -> float:
    """Return the share of neighbours that are of the same kind."""
    return float((kinds[1:] == kinds[:-1]).mean())


def test_vectors_of_a_kind_are_neighbours() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, 400)
    vectors = np.eye(4, 16)[kinds] * 3 + rng.standard_normal((400, 16)) * 0.5
    assert neighbours_of_a_kind(kinds) < 0.35
    assert neighbours_of_a_kind(kinds[order_vectors(vectors.astype(np.float32))]) > 0.95


def test_lines_with_a_common_prefix_follow_each_other() -> None:
    """Also at several lengths, one within the other; without one, lines keep the order of the file."""
    system, examples = "s" * 300, "e" * 800
    texts = [f"{system if i % 3 else i}{examples if i % 2 else ''}{i}{'x' * 5000}" for i in range(24)]
    digests = np.array([prefix_digests(text) for text in texts], dtype=np.uint64)
    order = order_lines(LineFeatures(digests, np.zeros((24, WIDTH), np.float32))).tolist()
    for members in ({i for i in order if i % 3}, {i for i in order if i % 3 and i % 2}):
        places = [order.index(i) for i in members]
        assert max(places) - min(places) == len(members) - 1


def test_short_texts_share_no_prefix() -> None:
    assert prefix_digests("a" * 255) == [0, 0, 0]
    first, second, third = prefix_digests("a" * 1024)
    assert first and second and not third and first != second


PARTS = [{"type": "text", "text": "b"}, {"type": "image_url"}]


@pytest.mark.parametrize(
    ("body", "text", "ids"),
    [
        ({"prompt": "a"}, "a", None),
        ({"prompt": ["a", "b"]}, "a", None),
        ({"prompt": [1, 2]}, "1 2", [1, 2]),
        ({"prompt": [[1, 2], [3]]}, "1 2", [1, 2]),
        ({"messages": [{"content": "a"}, {"content": PARTS}]}, "a\nb", None),
        ({"prompt": 7}, "", None),
        ({"prompt": []}, "", []),
        ({"prompt": [None]}, "", None),
        ({"prompt": [-1]}, "", None),
        ({"messages": "x"}, "", None),
        ({}, "", None),
        ([], "", None),
    ],
)
def test_the_text_of_a_prompt(body: object, text: str, ids: list[int] | None) -> None:
    """Whatever a body holds: it is refused later, with a reason."""
    assert prompt_text(json.dumps(body).encode()) == PromptText(text, ids)


def domain_lines() -> tuple[list[str], np.ndarray]:
    """Return requests about verses and about jargon in turns, and which are which."""
    documents = HELD_OUT.read_text().split("<|endoftext|>\n")
    verses = [text for text in documents if "\n1 " in text[:60]][:20]
    others = [text for text in documents if "\n1 " not in text[:60]][:20]
    texts = [text[60:560] for pair in zip(verses, others, strict=True) for text in pair]
    return [request_text(str(i), prompt=text) for i, text in enumerate(texts)], np.arange(len(texts)) % 2


@pytest.mark.parametrize("trained", [True, False])
def test_texts_of_a_domain_are_neighbours(trained: bool) -> None:
    """By the experts that a trained predictor forecasts, or by their words."""
    lines, kinds = domain_lines()
    given_lines = indexed(lines)
    forecast = find_forecast(MODEL) if trained else None
    assert (forecast is not None) == trained
    order = np.concatenate(list(shared_order(given_lines, TextCodec(str(MODEL)), forecast)))
    assert sorted(order.tolist()) == list(range(len(lines)))
    assert neighbours_of_a_kind(kinds[order]) > 0.7


def test_lines_that_have_ended_do_not_run_again() -> None:
    given_lines = indexed(domain_lines()[0])
    given_lines.index.ended[3:] = True
    for order in (input_order(given_lines), shared_order(given_lines, TextCodec("/nowhere"), None)):
        assert sorted(np.concatenate(list(order)).tolist()) == [0, 1, 2]


def test_the_forecast_of_a_token_is_the_experts_it_uses() -> None:
    """Against the trained table itself: more than its popularity for what it used most."""
    forecast = load_token_forecast(MODEL / "predictor.npz", str(MODEL))
    deviations = forecast(np.arange(64))
    assert deviations.shape == (64, 6 * 32) and np.abs(deviations.reshape(64, 6, 32).sum(2)).max() < 0.05
    assert deviations.max() > 0.3


def test_a_line_without_tokens_has_a_vector_of_zeros() -> None:
    made = line_features([PromptText(""), PromptText("a b")], None, TokenVectors(None))
    assert made.vectors.shape == (2, WIDTH) and not made.vectors.any()
    assert line_features([], None, TokenVectors(None)).vectors.shape == (0, WIDTH)


def test_vectors_of_few_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary must not fill memory; a vector that was dropped is made again."""
    monkeypatch.setattr(features, "MAX_TOKENS", 8)
    vectors = TokenVectors(None)
    first = vectors.sum([0, 1])
    for start in range(0, 40, 4):
        vectors.sum(list(range(start, start + 4)))
        assert len(vectors._of) <= 8
    assert (vectors.sum([0, 1]) == first).all()


@pytest.mark.parametrize("count, parts", [(0, 3), (1, 4), (10, 1), (10, 3), (12, 4)])
def test_dealt_rows_are_the_same_rows(count: int, parts: int) -> None:
    rows = np.random.default_rng(0).permutation(count)
    assert sorted(deal_rows(rows, parts).tolist()) == list(range(count))


def test_replicas_get_rows_of_different_parts_at_once() -> None:
    assert deal_rows(np.arange(8), 4).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
