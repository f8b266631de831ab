"""Streams become arrays: every token of every sequence once, whichever process died in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.tests.traces.streams import (
    EXPERTS,
    LAYERS,
    TOP_K,
    encode,
    header,
    hidden_of,
    plan,
    route,
    step,
    token,
    write,
)
from expertflow.workers.traces.reading import read_hidden, read_step_log, read_trace
from expertflow.workers.traces.trace import Trace, write_npz
from hypothesis import given
from hypothesis import strategies as st

NEXT = 2 << 32
"""First row of the next scheduler."""


def check(trace: Trace, lengths: dict[int, int]) -> None:
    """The sequences are these rows, of these lengths, with the tokens and routes of the made-up streams."""
    assert trace.sequences == len(lengths)
    places = [(row, position) for row, length in lengths.items() for position in range(length)]
    assert np.diff(trace.offsets).tolist() == list(lengths.values())
    assert trace.token_ids.tolist() == [token(*place) for place in places]
    assert np.array_equal(trace.routes, np.stack([route(*place) for place in places]))
    assert trace.weights is not None and np.array_equal(trace.weights, (trace.routes / 16).astype(np.float16))


def test_steps_become_sequences_that_stand_together(tmp_path: Path) -> None:
    write(tmp_path, step(4, [(0, 0), (0, 1), (1, 0)]), step(5, [(0, 2), (1, 1)]), step(6, [(2, 0)]))
    trace = read_trace(tmp_path)
    check(trace, {0: 3, 1: 2, 2: 1})
    assert trace.steps is not None and trace.steps.tolist() == [0, 0, 1, 0, 1, 2]
    assert trace.decoded is not None and trace.decoded.tolist() == [False, False, True, False, True, False]
    assert (trace.expert_count, trace.model, trace.vocabulary) == (EXPERTS, "f" * 32, None)


def test_what_a_new_compute_computed_again_is_there_once(tmp_path: Path) -> None:
    """The first time counts: that step was a decode step."""
    write(tmp_path, step(0, [(0, 0), (0, 1)]), step(1, [(0, 2)]))
    write(tmp_path, step(2, [(0, 0), (0, 1), (0, 2), (0, 3)]), step(3, [(0, 4)]), epoch=2)
    trace = read_trace(tmp_path)
    check(trace, {0: 5})
    assert trace.steps is not None and trace.steps.tolist() == [0, 0, 1, 2, 3]


def test_a_new_scheduler_goes_on_with_a_sequence_under_another_row(tmp_path: Path) -> None:
    write(
        tmp_path,
        step(0, [(3, 0), (3, 1)]),
        step(1, [(3, 2)]),
        step(2, [(NEXT, 0), (NEXT, 1), (NEXT, 2), (NEXT, 3)], like={NEXT: 3}),
        step(3, [(NEXT, 4)], like={NEXT: 3}),
    )
    check(read_trace(tmp_path), {3: 5})


def test_equal_prompts_of_one_scheduler_are_two_sequences(tmp_path: Path) -> None:
    write(tmp_path, step(0, [(5, 0), (5, 1), (6, 0), (6, 1)], like={6: 5}))
    assert read_trace(tmp_path).sequences == 2


@pytest.mark.parametrize("difference", [{"seeds": [1]}, {"token_ids": [300, 7]}])
def test_another_request_of_a_new_scheduler_is_another_sequence(tmp_path: Path, difference: dict[str, Any]) -> None:
    """Another seed or another token tells them apart."""
    other = msgspec.structs.replace(step(1, [(NEXT, 0), (NEXT, 1)], like={NEXT: 3}), **difference)
    write(tmp_path, step(0, [(3, 0), (3, 1)]), other)
    trace = read_trace(tmp_path)
    assert (trace.sequences, trace.tokens) == (2, 4)


def test_a_torn_step_is_filled_in_by_the_one_that_computed_it_again(tmp_path: Path) -> None:
    torn = msgspec.msgpack.encode(step(1, [(0, 2)]))[:-1]
    write(tmp_path, step(0, [(0, 0), (0, 1)]), tail=torn)
    write(tmp_path, step(1, [(0, 0), (0, 1), (0, 2)]), epoch=2)
    check(read_trace(tmp_path), {0: 3})


@given(st.data())
def test_any_history_gives_every_token_once(tmp_path_factory, data: st.DataObject) -> None:
    """Rows prefilled and decoded in any mixture, with deaths of compute in between."""
    lengths: dict[int, int] = {}
    records, epoch, folder = [], 1, tmp_path_factory.mktemp("history")
    for number in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["prefill", "decode", "death"])):
            case "decode" if lengths:
                records.append(step(number, list(lengths.items())))
                lengths = {row: length + 1 for row, length in lengths.items()}
            case "death" if records:
                write(folder, *records, epoch=epoch)
                reissue_copies = [(row, position) for row, length in lengths.items() for position in range(length)]
                records, epoch = [step(number, reissue_copies)], epoch + 1
            case _:
                row, length = len(lengths), data.draw(st.integers(1, 4))
                records.append(step(number, [(row, position) for position in range(length)]))
                lengths[row] = length
    write(folder, *records, epoch=epoch)
    check(read_trace(folder), lengths)


def test_an_npz_holds_the_same(tmp_path: Path) -> None:
    write(tmp_path / "trace", step(0, [(0, 0), (0, 1)]), step(1, [(0, 2)]))
    trace = read_trace(tmp_path / "trace")
    write_npz(trace, tmp_path / "trace.npz")
    reissue_copies = read_trace(tmp_path / "trace.npz")
    for name in ("routes", "token_ids", "offsets", "decoded", "weights", "steps"):
        ours, theirs = getattr(reissue_copies, name), getattr(trace, name)
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype, name
    assert (reissue_copies.expert_count, reissue_copies.model) == (trace.expert_count, trace.model)


def test_plans_and_hints_are_found_by_step(tmp_path: Path) -> None:
    hints = bytes(range(LAYERS * EXPERTS))
    write(tmp_path, step(7, [(0, 0)]), step(8, [(0, 1)], hints=hints), step(9, [(0, 2)]))
    write(tmp_path, plan(8, 5), plan(10, 6), plan(9, 7), stage="predictor")
    log = read_step_log(tmp_path)
    assert log.planned.tolist() == [False, True, True] and log.planned_ns.tolist() == [-1, 8, 9]
    assert [set(each.ravel().tolist()) for each in log.plans] == [{0}, {5}, {7}]
    assert log.hinted.tolist() == [False, True, False]
    assert log.hints.shape == (3, LAYERS, EXPERTS) and log.hints[1].tobytes() == hints
    assert log.compute_ns.tolist() == [[10, 20, 30, 40]] * 3
    assert (log.tokens.tolist(), log.decoded.tolist()) == ([1, 1, 1], [False, True, True])


def test_hidden_states_stand_at_their_tokens(tmp_path: Path) -> None:
    """A state that was kept only when its token ran again belongs to a step that does not count."""
    first, reissue_copies = [(0, 0), (1, 0), (1, 1)], [(0, 0), (0, 1), (1, 0)]
    write(tmp_path, step(0, first, **hidden_of(first, [0, 2])))
    write(tmp_path, step(1, reissue_copies, **hidden_of(reissue_copies, [1, 2])), epoch=2)
    trace, hidden = read_hidden(tmp_path)
    assert hidden.states.shape == (3, LAYERS, 4) and hidden.states.dtype == np.float16
    assert trace.token_ids[hidden.tokens].tolist() == [token(0, 0), token(0, 1), token(1, 1)]
    assert hidden.states[:, 0, 0].tolist() == [0, 1 / 16, 1 + 1 / 16]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no trace"):
        read_trace(tmp_path)
    write(tmp_path)
    with pytest.raises(UsageError, match="no step has ended yet"):
        read_trace(tmp_path)
    write(tmp_path, step(0, [(0, 0)]))
    with pytest.raises(UsageError, match="no hidden states"):
        read_hidden(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "nowhere")


BROKEN = {
    "experts": b"\0",
    "weights": b"",
    "compute_ns": [1],
    "positions": [0],
    "seeds": [],
    "hints": b"1",
    "sampled": [9],
    "hidden": b"123",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_whose_parts_do_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, msgspec.structs.replace(step(3, [(0, 0), (0, 1)]), **{name: BROKEN[name]}))
    with pytest.raises(UsageError, match="step 3 does not fit"):
        read_trace(tmp_path)


def test_hidden_states_of_two_widths_are_refused(tmp_path: Path) -> None:
    kept = hidden_of([(0, 0)], [0])
    wider = kept | {"hidden": kept["hidden"] * 2}
    write(tmp_path, step(3, [(0, 0)], **kept), step(4, [(0, 1)], **wider))
    with pytest.raises(UsageError, match="step 4 has hidden states of another width"):
        read_hidden(tmp_path)


@pytest.mark.parametrize("name", ["layers", "experts", "top_k"])
@pytest.mark.parametrize("value", [0, -1, 2**63])
def test_a_header_of_no_model_is_refused(tmp_path: Path, name: str, value: int) -> None:
    """Sizes were divided by."""
    file = tmp_path / "compute.1.msgpack"
    file.write_bytes(encode(msgspec.structs.replace(header(), **{name: value}), step(0, [(0, 0)])))
    with pytest.raises(UsageError, match=rf"message 1: .*{name}") as refused:
        read_trace(tmp_path)
    assert refused.value.where == str(file)


@pytest.mark.parametrize("name", ["token_ids", "rows", "positions", "seeds"])
@pytest.mark.parametrize("value", [2**63, 2**64 - 1, -1])
def test_a_number_that_no_array_holds_is_named_by_its_record(tmp_path: Path, name: str, value: int) -> None:
    file = write(tmp_path, step(0, [(0, 0)]), msgspec.structs.replace(step(1, [(1, 0)]), **{name: [value]}))
    with pytest.raises(UsageError, match=rf"message 3: .*{name}") as refused:
        read_trace(tmp_path)
    assert refused.value.where == str(file)


NPZ = {
    "experts": (np.array([[[65_536]]]), "65,536 are the most"),
    "experts_per_layer": (np.array(70_000), "70,000 experts a layer"),
    "token_ids": (np.array([2**63], np.uint64), "`token_ids` are not numbers"),
    "tokens": (np.array([["a"]]), "2 dimensions"),
    "decoded": (np.array([[1, 0]]), "2 dimensions"),
    "prompt_offsets": (np.array([0, 3, 2, 1], np.uint64), "must grow"),
    "steps": (np.array([1, 2]), "2 entries for 1 tokens"),
}


@pytest.mark.parametrize("name", NPZ)
def test_arrays_that_are_no_trace_are_refused(tmp_path: Path, name: str) -> None:
    """Numbers beyond their type would become others without a word: expert 65,536 expert 0."""
    array, words = NPZ[name]
    arrays: dict[str, Any] = {"experts": np.array([[[3]]]), name: array}
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UsageError, match=words) as refused:
        read_trace(tmp_path / "t.npz")
    assert refused.value.where == str(tmp_path / "t.npz")


def test_files_that_hold_no_arrays_are_refused(tmp_path: Path) -> None:
    """Without numpy's advice to load the file unsafely."""
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "garbage").write_bytes(b"garbage")
    for name in ("one.npy", "garbage"):
        with pytest.raises(UsageError, match=r"cannot be read as a trace \(it is no npz file\)"):
            read_trace(tmp_path / name)


def test_the_last_expert_that_a_trace_can_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", experts=np.array([[[65_535]]]), token_ids=np.array([2**63 - 1]))
    trace = read_trace(tmp_path / "t.npz")
    assert (trace.routes.item(), trace.expert_count, trace.token_ids.item()) == (65_535, 65_536, 2**63 - 1)


def test_an_expert_beyond_the_model_is_refused(tmp_path: Path) -> None:
    wild = np.full((1, LAYERS, TOP_K), EXPERTS, "<u2").tobytes()
    write(tmp_path, msgspec.structs.replace(step(3, [(0, 0)]), experts=wild))
    with pytest.raises(UsageError, match="step 3"):
        read_trace(tmp_path)
