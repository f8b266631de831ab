"""Readers of bytes from elsewhere take or refuse whatever comes: changed inputs, and those that fuzzing found.

`make fuzz` does the same for minutes, guided by coverage.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from expertflow.errors import UsageError
from expertflow.tests.fuzz import connections, learned_files, written_files
from expertflow.tests.fuzz import target as targets
from expertflow.tests.fuzz.all_targets import TARGETS
from expertflow.tests.fuzz.mutations import DEPTHS, mutate
from expertflow.tests.fuzz.target import Read, Target, opened, peak_bytes, try_input
from expertflow.workers.predictor.path.forecaster import load_path
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = 20
"""Inputs of each target; there are more than forty targets."""
ALWAYS_REFUSED = {"adapter_config.json"}
MIB = 1 << 20


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture
def read(target: Target, tmp_path: Path) -> Iterator[Read]:
    with opened(target, tmp_path) as read:
        yield read


def test_the_seeds_of_a_target_are_taken(target: Target, read: Read) -> None:
    """Changed inputs of which none is near a valid one would test the first check of a reader alone."""
    for seed in target.seeds():
        if target.name not in ALWAYS_REFUSED:
            read(seed)


def test_changed_inputs_are_taken_or_refused(target: Target, read: Read) -> None:
    seeds = target.seeds()

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, 2**32), st.integers(1, 3))
    def check(seed: int, changes: int) -> None:
        rng = random.Random(seed)
        data = rng.choice(seeds)
        for _ in range(changes):
            data = mutate(data, target.form, target.kept, rng)
        assert try_input(read, target.refusals, data) is None, data

    check()


LEDGER = b"\x86\xa4type\xacLedgerHeader\xa5slotsSLOTS\xa6layers\x02\xa7experts\x03\xa5top_k\x01\xa6policy\xa3lru"
FOUND: list[tuple[str, bytes]] = [
    ("index of shards", b'{"weight_map": {"a": "\xffb"}}'),
    ("index of shards", b'{"wei\x99ght_map": {"a": "b"}}'),
    ("kernel table", b'{"machine": {"\xaa": "x"}}'),
    ("kernel table", b'{"choices": {"a": ["\xaa"]}}'),
    ("kernel table", b'{"other": ' + b"[" * 5000),
    ("GGUF description", b'{"architecture": "\xb6"}'),
    ("config.json", b'{"\\ud800": 1}'),
    ("config.json", b'{"quantization_config": {"quant_method": "compressed-tensors", "format": ["a"], "config_groups":'
     b' {"a": {"weights": {"num_bits": 4}}}}}'),
    ("config.json", b'{"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": [1],'
     b' "config_groups": {"a": {"weights": {"num_bits": 4}}}}}'),
    ("generation_config.json", b'{"\\ud800": 0}'),
    ("tokenizer_config.json", b'{"chat_template": [{"name": [1], "template": "a"}]}'),
    ("tokenizer_config.json", b'{"eos_token": {"__type": "AddedToken", "content": "a", "normalized": null}}'),
    ("tokenizer_config.json", b'{"__type": "AddedToken"}'),
    ("tokenizer_config.json", b'{"a": ' + b"[" * 700 + b"]" * 700 + b"}"),
    ("special_tokens_map.json", b'{"pad_token": {"content": "a", "single_word": -1}}'),
    ("special_tokens_map.json", b'{"extra_special_tokens": [["a"]]}'),
    ("predictor (arrays)", b"Ew6`"),
    ("predictor (arrays)", b"$\xff\0\0"),
    ("predictor (arrays)", b"'\x03\x02\0"),
    ("gates", b'{"x": ' + b"[" * 5000),
    ("key file", connections.KEY.replace(b"H8]yf7", b"H#]ff7")),
    ("past runs", b'{"runs":[{"machine":"\x80"}]}'),
    ("tokenizer.json", learned_files.tokenizer_without("post_processor", "special_tokens", "</s>")),
    ("tokenizer.json", learned_files.tokenizer_without("model", "unk_id")),
    ("lying scheduler", connections.finished_with_routes((2, 2, 2))),
    ("lying scheduler", connections.finished_with_routes((-1, -1, 1))),
    ("paper's predictor (header)", learned_files.header_with(blocks=0)),
    ("paper's predictor (header)", learned_files.header_with(width=2**40)),
    ("paper's predictor (header)", learned_files.header_with(head=-(2**63))),
    ("paper's predictor (header)", learned_files.header_with(blocks=2**40)),
    ("paper's predictor (header)", learned_files.header_with(window=0)),
    ("paper's predictor (header)", learned_files.header_with(vocabulary=4)),
    ("ledger's log", LEDGER.replace(b"SLOTS\xa6layers\x02", b"\x02\xa6layers\xff")),
    ("ledger's log", LEDGER.replace(b"SLOTS", b"\x02").replace(b"experts\x03", b"experts\0")),
    ("POST /tokenize", b'{"messages": [{"role": "system", "content": "a", "x": [-9223372036854775809]}]}'),
    (
        "POST /v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "B"}], "chat_template_kwargs": {"": 18446744073751615905}}',
    ),
    ("trace (npz)", learned_files.npz_without_an_array("experts")),
    ("trace (npz)", learned_files.npz_without_an_array("prompt_offsets")),
]  # fmt: skip
"""Inputs at which readers failed with an error of Python's own."""


@pytest.mark.parametrize(("name", "data"), FOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_what_was_found_is_taken_or_refused(name: str, data: bytes, tmp_path: Path) -> None:
    with opened(TARGETS[name], tmp_path) as read:
        fault = try_input(read, TARGETS[name].refusals, data)
    assert fault is None, fault


@pytest.mark.parametrize("name", written_files.weights())
def test_a_predictor_without_one_of_its_arrays_is_refused(name: str, tmp_path: Path) -> None:
    """At the start, by name, and not in the middle of every step, where the engine would give up after some deaths."""
    arrays = written_files.predictor_arrays()
    del arrays[name]
    (tmp_path / "p.npz").write_bytes(written_files.npz_bytes(arrays))
    with pytest.raises(UsageError, match=name.removeprefix("weights.")):
        load_path(tmp_path / "p.npz", written_files.MODEL_SHAPE)


@pytest.mark.parametrize("slots", [2**63 - 1, 2**31 - 1, 2**25])
def test_the_sizes_that_a_ledgers_log_states_reserve_no_memory(slots: int, tmp_path: Path) -> None:
    """A file of 60 bytes must not take gigabytes, nor minutes."""
    header = LEDGER.replace(b"SLOTS", msgspec.msgpack.encode(slots))
    target = TARGETS["ledger's log"]
    with opened(target, tmp_path) as read:
        assert peak_bytes(read, target.refusals, header) < 8 * MIB


def test_the_sizes_that_the_papers_predictor_states_reserve_no_memory(tmp_path: Path) -> None:
    """Sixteen gigabytes by its header, a few kilobytes on disk."""
    target = TARGETS["paper's predictor (header)"]
    with opened(target, tmp_path) as read:
        try_input(read, target.refusals, target.seeds()[0])  # imports what it needs
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fault = try_input(read, target.refusals, learned_files.header_with(vocabulary=2**30))
        assert fault is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 << 10


def test_the_sizes_that_gates_state_reserve_no_memory(tmp_path: Path) -> None:
    """Half a gigabyte by their facts, 300 bytes on disk."""
    facts = b'{"fingerprint":"f","layers":3,"experts":4,"top_k":1,"width":8388608,"bottleneck":8}'
    with opened(TARGETS["gates"], tmp_path) as read:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fault = try_input(read, TARGETS["gates"].refusals, facts)
        assert fault is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 << 10


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.form == "json"])
def test_nesting_is_taken_or_refused(name: str, depth: int, tmp_path: Path) -> None:
    """Parsers have limits of their own; what walks through their result has Python's stack."""
    target = TARGETS[name]
    begin = target.seeds()[0][: target.kept]
    with opened(target, tmp_path) as read:
        for opening, closing in ((b"[", b"]"), (b'{"a": ', b"}")):
            nested = opening * depth + b"1" + closing * depth
            for data in (nested, b'{"model_type": ' + nested + b"}", b'{"messages": ' + nested + b"}"):
                fault = try_input(read, target.refusals, begin + data)
                assert fault is None, fault


# What the tests themselves rely on


def test_a_planted_error_is_a_fault() -> None:
    def read(data: bytes) -> object:
        return {}[data]

    fault = try_input(read, (UsageError,), b"x")
    assert fault is not None and fault.kind == "KeyError"
    assert try_input(read, (KeyError,), b"x") is None


def test_a_planted_hang_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([0.0, targets.SLOW_S + 1])
    monkeypatch.setattr(time, "process_time", lambda: next(now_s))
    fault = try_input(len, (), b"x")
    assert fault is not None and fault.kind == "slow"


def test_a_planted_blow_up_is_measured() -> None:
    assert peak_bytes(lambda data: bytes(20 * MIB), (), b"x") > 20 * MIB


@pytest.mark.parametrize("form", ["json", "packed", "bytes"])
def test_changes_are_many_and_repeatable(form: str) -> None:
    seed = {"json": b'{"a": [1, {"b": null}]}', "packed": b"\x81\xa1a\x93\x01\x02\x03", "bytes": b"GGUF\0\0"}[form]
    changed = [mutate(seed, form, 0, random.Random(number)) for number in range(200)]  # type: ignore[arg-type]
    assert len(set(changed)) > 60
    assert changed == [mutate(seed, form, 0, random.Random(number)) for number in range(200)]  # type: ignore[arg-type]
