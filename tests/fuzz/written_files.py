"""Targets: files that ExpertFlow writes itself and reads again, which users hand on, and files of prompts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import msgspec
import numpy as np
import torch
from expertflow.configs.checks import KERNELS
from expertflow.configs.schema import Config
from expertflow.ipc.messages import RunStep, Split, Stepped
from expertflow.runtime.batch_files.header import JobHeader
from expertflow.runtime.batch_files.request_line import parse_line
from expertflow.runtime.batch_files.result_lines import read_ended
from expertflow.runtime.batch_files.store import _read_header
from expertflow.runtime.bundle.contents import FORMAT, MEMBERS, PLAIN, Bundle
from expertflow.runtime.bundle.file import read_bundle
from expertflow.runtime.client import images
from expertflow.runtime.engine.timeline import decode_timeline
from expertflow.runtime.prompt_sources.workloads import record_prompts
from expertflow.runtime.replay.ledger_log import replay_ledger_log
from expertflow.tests.fuzz.examples import examples_of, packed_examples
from expertflow.tests.fuzz.mutations import Form
from expertflow.tests.fuzz.target import Read, Target, in_file
from expertflow.workers.compute.recording import read_steps
from expertflow.workers.gates.files import KIND as GATES
from expertflow.workers.gates.files import GateFacts, load_gates
from expertflow.workers.kernels.cache import read_cached, read_table
from expertflow.workers.kernels.table import ROW_STEPS, KernelTable
from expertflow.workers.loader.events import LedgerEvent
from expertflow.workers.loader.ledger_log import LedgerHeader
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.base.predictor_file import Header, stored_kind
from expertflow.workers.predictor.path.file import KIND, PathShape
from expertflow.workers.predictor.path.forecaster import load_path
from expertflow.workers.predictor.training.module import PathModule
from expertflow.workers.traces.reading import read_step_log, read_trace
from expertflow.workers.traces.records import TracedPlan, TracedStep, TraceHeader
from safetensors.torch import save_file

TOML = (
    b'model = "m"\nbatch_size = 4\nexpert_memory = "25%"\nhints = "off"\n',
    b"link_latency_us = 0.0\nhang_timeout_s = 5\nbatch_invariant = true\n",
)
RECORDS = {
    "alpaca": b'{"instruction": "Say", "input": "it"}\n{"instruction": "x"}',
    "wmt16": b'[{"translation": {"de": "ja", "en": "yes"}}]',
    "xsum": b'{"document": "a"}',
    "aime": b'{"Problem": "1 + 1"}',
}
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'
RESULT = b'{"id": "a", "custom_id": "b", "response": {"status_code": 200, "request_id": "r", "body": {}}, "line": 1}'
EVENT = b'{"ph": "X", "name": "step", "pid": 1, "tid": 0, "ts": 1.5, "dur": 2.0, "args": {"step": 1}}'
TIMELINE = (
    b'[\n{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "compute"}},\n'
    b'{"ph": "X", "name": "step", "pid": 1, "tid": 0, "ts": 1.5, "dur": 2.0, "args": {"step": 1}},\n'
)


def written_targets() -> list[Target]:
    """Return a target for each kind of file, and for what is inside files that are compressed."""
    return [
        Target("configuration (TOML)", in_file("own.toml", _read_toml), lambda: list(TOML)),
        Target("trace (npz)", in_file("trace.npz", read_trace), lambda: [npz_bytes(_trace_arrays())]),
        Target("trace (arrays)", arrays_in("trace.npz", _trace_arrays, read_trace), lambda: [b"", b"\0\0\0"]),
        Target("predictor file", in_file("predictor.npz", _read_predictor), lambda: [npz_bytes(predictor_arrays())]),
        Target("predictor (arrays)", arrays_in("p.npz", predictor_arrays, _read_predictor), lambda: [b"", b"\0\0\0"]),
        Target("bundle (zip)", in_file("engine.zip", read_bundle), lambda: [bundle_bytes({})]),
        Target("timeline", lambda folder: _read_timeline, lambda: [TIMELINE]),
        Target("image", lambda folder: _read_image, image_seeds),
        _structured("trace (MessagePack)", in_file("trace/compute.1.msgpack", _read_trace), trace_seeds, "packed"),
        _structured("recording of steps", in_file("run/steps.1.msgpack", _read_recording), _recording_seeds, "packed"),
        _structured("ledger's log", in_file("ledger.1.msgpack", replay_ledger_log), ledger_seeds, "packed"),
        _structured("predictor header", _prepare_header, lambda: [_predictor_header()], "json"),
        _structured("gates", _prepare_gates, lambda: [_gate_facts()], "json"),
        _structured("kernel table", in_file("kernels.json", _read_kernels), _table_seeds, "json"),
        _structured("bundle's members", _prepare_members, _member_seeds, "json", 1),
        _structured("events of a timeline", lambda folder: _read_event, lambda: [EVENT], "json"),
        _structured("line of a batch file", lambda folder: parse_line, lambda: [LINE], "json"),
        _structured("line of a batch's results", lambda folder: _read_result, lambda: [RESULT], "json"),
        _structured("header of a batch job", in_file("out.job", _read_header), _job_seeds, "json"),
        _structured("records of prompts", lambda folder: _read_records, _record_seeds, "json", 1),
    ]


def _structured(
    name: str, prepare: Callable[[Path], Read], seeds: Callable[[], list[bytes]], form: Form, kept: int = 0
) -> Target:
    return Target(name, prepare, seeds, form=form, kept=kept)


def _read_toml(path: Path) -> object:
    return Config.load(str(path))


# Traces and recordings


def _read_trace(path: Path) -> object:
    return read_trace(path.parent), read_step_log(path.parent)


def trace_seeds() -> list[bytes]:
    """Return the file of a trace of one step of two tokens, two layers and one expert a token; with a plan."""
    header = TraceHeader(
        stage="compute", epoch=1, model="m", fingerprint="f", layers=2, experts=3, top_k=1, expert_bytes=9
    )
    step = TracedStep(
        step=0, unit=0, phase="prefill", token_ids=[5, 6], rows=[1, 1], positions=[0, 1],
        experts=bytes(8), weights=bytes(8), started_ns=1, busy_ns=2, stall_ns=0, compute_ns=[1, 1, 1], hits=1, misses=1,
        admitted=[1], seeds=[7], hints=bytes(6), sampled=[1], hidden=bytes(16),
    )  # fmt: skip
    plan = TracedPlan(step=0, sent_ns=1, scores=bytes(6))
    return [b"".join(map(msgspec.msgpack.encode, [header, step, plan]))]


def _read_recording(path: Path) -> object:
    return list(read_steps(str(path.parent)))


def _recording_seeds() -> list[bytes]:
    return [b"".join(packed_examples(RunStep | Stepped | Split))]


def ledger_seeds() -> list[bytes]:
    """Return logs of a small ledger that hears one event of every kind."""
    header = msgspec.msgpack.encode(LedgerHeader(slots=4, layers=2, experts=3, top_k=1, policy="lru"))
    return [header, *(header + event for event in packed_examples(LedgerEvent))]


# Arrays


def npz_bytes(arrays: dict[str, Any]) -> bytes:
    """Return an npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _trace_arrays() -> dict[str, Any]:
    routes = np.zeros((4, 2, 1), np.uint16)
    return {
        "experts": routes, "token_ids": np.arange(4), "prompt_offsets": np.array([0, 2, 4]), "experts_per_layer": 3,
        "decoded": np.zeros(4, bool), "weights": routes.astype(np.float16), "steps": np.arange(4), "model": "m",
    }  # fmt: skip


def arrays_in(
    name: str, make: Callable[[], dict[str, Any]], read: Callable[[Path], object]
) -> Callable[[Path], Read]:
    """Return a `prepare` whose inputs are edits of valid arrays: which array, in which shape and type, with what."""

    def prepare(folder: Path) -> Read:
        put = in_file(name, read)(folder)

        def call(data: bytes) -> object:
            arrays = make()
            for place in range(0, len(data) - 3, 4):
                _edit(arrays, data[place : place + 4])
            return put(npz_bytes(arrays))

        return call

    return prepare


_DTYPES = ("<u2", "<i8", "<f4", "?", "<U3", "<c8", "<M8[s]", "S2", "<f2", ">i4")
_SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (4,), (4, 2, 1), (2, 2), (0, 2, 1), (4, 0, 1), (3,), (4, 2))


def _edit(arrays: dict[str, Any], four: bytes) -> None:
    name = sorted(arrays)[four[0] % len(arrays)] if arrays else "experts"
    if four[1] == 255:
        arrays.pop(name, None)
        return
    shape, kind = _SHAPES[four[1] % len(_SHAPES)], _DTYPES[four[2] % len(_DTYPES)]
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = (four[3:] * count if four[3] < 128 else bytes(range(256)) * (count // 256 + 1))[:count]
    if kind != "<U3":
        arrays[name] = np.frombuffer(raw, kind).reshape(shape) if count else np.zeros(shape, kind)
    else:
        arrays[name] = np.full(shape, chr(four[3]))


MODEL_SHAPE = ModelShape(layers=2, experts=3, top_k=1, fingerprint="f")
SHAPE = PathShape(
    layers=2, experts=3, top_k=1, code=4, hidden=4, inner=4, blocks=1, heads=1, key=2, window=4, grams=0
)


def _read_predictor(path: Path) -> object:
    """Load a predictor; values of another size than usual overflow, which costs a warning."""
    with np.errstate(all="ignore"):
        return stored_kind(path), load_path(path, MODEL_SHAPE)


def _predictor_header() -> bytes:
    return msgspec.json.encode(Header(kind=KIND, model="f", shape=SHAPE))


@cache
def weights() -> dict[str, np.ndarray]:
    """Return the weights of an untrained predictor."""
    module = PathModule(SHAPE, torch.full((SHAPE.width,), 0.3))
    return {f"weights.{name}": value.detach().numpy().astype(np.float16) for name, value in module.state_dict().items()}


def predictor_arrays(header: bytes | None = None) -> dict[str, Any]:
    counts, seen = np.zeros((1, SHAPE.width), np.uint8), np.ones(1, np.uint8)
    table = {"table.counts": counts, "table.seen": seen, "table.tokens": np.arange(1)}
    raw = _predictor_header() if header is None else header
    return {"header": np.frombuffer(raw, np.uint8), **weights(), **table}


def _prepare_header(folder: Path) -> Read:
    put = in_file("predictor.npz", _read_predictor)(folder)
    return lambda data: put(npz_bytes(predictor_arrays(data)))


# Tables, bundles, timelines


def _gate_facts() -> bytes:
    return msgspec.json.encode(GateFacts(fingerprint="f", layers=3, experts=4, top_k=1, width=2, bottleneck=2))


def _prepare_gates(folder: Path) -> Read:
    """Return a reader of facts: the tensors beside them are those of the facts that are the seed."""
    file, gates = folder / "gates.safetensors", GateFacts(**json.loads(_gate_facts())).make()
    survey: Any = SimpleNamespace(fingerprint="f", layers=3, experts=4)

    def call(data: bytes) -> object:
        metadata = {"kind": GATES, "facts": data.decode("utf-8", "replace")}
        save_file(gates.state_dict(), file, metadata)
        return load_gates(file, survey)

    return call


def _read_kernels(path: Path) -> object:
    return read_cached(path, {"cpu": "x"}, ["a"]), read_table(path)


def _table_seeds() -> list[bytes]:
    choices = [KERNELS[0]] * len(ROW_STEPS)
    return [msgspec.json.encode(table) for table in (KernelTable(), KernelTable(choices={"a": choices}))]


def _member_seeds() -> list[bytes]:
    return [bytes([number]) + _member(number) for number in range(len(MEMBERS))]


def bundle_bytes(members: dict[str, bytes]) -> bytes:
    """Return a bundle whose members are these, by field, and examples."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, (field, member) in enumerate(MEMBERS.items()):
            archive.writestr(member, members.get(field, _member(number)))
    return content.getvalue()


def _member(number: int) -> bytes:
    """Return an example of a bundle's member; numbers go round."""
    field = list(MEMBERS)[number % len(MEMBERS)]
    if field in PLAIN:
        return b"text"
    example = _example_of(get_type_hints(Bundle)[field])
    if field == "manifest":
        example |= {"format": FORMAT, "written": "2026-01-01T00:00:00+00:00"}
    if field == "activity":
        example["text"]["heat"] |= {"residence": "AQ==", "use": "AQ=="}
    return msgspec.json.encode(example)


def _example_of(hint: Any) -> Any:
    [example] = examples_of(hint)
    return example


def _prepare_members(folder: Path) -> Read:
    """Return a reader of inputs whose first byte names a member, and whose rest is its content."""
    put = in_file("engine.zip", read_bundle)(folder)
    names = list(MEMBERS)
    return lambda data: put(bundle_bytes({names[data[0] % len(names)]: data[1:]} if data else {}))


def _read_event(data: bytes) -> object:
    return _read_timeline(TIMELINE + data.replace(b"\n", b" ") + b",\n" + TIMELINE.splitlines()[1])


def _read_timeline(data: bytes) -> object:
    return list(decode_timeline(data.splitlines(keepends=True), "timeline.json"))


# Prompts and batch files


def _read_result(data: bytes) -> object:
    return list(read_ended(io.BytesIO(data), "results"))


def _job_seeds() -> list[bytes]:
    return [msgspec.json.encode(each) for each in examples_of(JobHeader)]


def _read_image(data: bytes) -> object:
    return images._open(data, 1)  # noqa: SLF001


def _read_records(data: bytes) -> object:
    """Read records in the format that the first byte names."""
    forms: list[Any] = list(RECORDS)
    return record_prompts(data[1:], "file", forms[data[0] % len(forms)]) if data else []


def _record_seeds() -> list[bytes]:
    return [bytes([number]) + content for number, content in enumerate(RECORDS.values())]


def image_seeds() -> list[bytes]:
    """Return a small image in each of three formats."""
    from PIL import Image

    seeds = []
    for form in ("PNG", "JPEG", "GIF"):
        content = io.BytesIO()
        Image.new("RGB", (5, 4), (200, 100, 0)).save(content, form)
        seeds.append(content.getvalue())
    return seeds
