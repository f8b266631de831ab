"""The configuration: one frozen struct, presets in TOML beside it, overrides on top; unknown keys are errors."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Meta

from ..errors import UsageError
from .devices import read_devices
from .ranges import check_number
from .sizes import parse_memory, parse_size
from .texts import is_text

TraceablePredictor = Literal["table", "path", "paper", "previous", "matrices", "everything"]
"""Predictors that need nothing but token ids and routing: `expertflow replay` takes them, too."""
Predictor = Literal["auto", "none", TraceablePredictor, "noise", "opposite", "oracle"]
Units = Literal["auto", "one", "two", "three", "four"]
Grouping = Literal["off", "auto", "swap", "kmeans"]
Policy = Literal["popularity", "lru", "lfu", "lfru", "least-stale", "static", "ring"]

RANGES = {
    "batch_size": Meta(ge=1, le=2**20),
    "prefill_tokens": Meta(ge=1),
    "queue_limit": Meta(ge=1),
    "compute_threads": Meta(ge=0, le=1024),
    "reads_in_flight": Meta(ge=1, le=1024),
    "trace_hidden": Meta(ge=0, le=1),
    "start_timeout_s": Meta(gt=0, le=10**6),
    "hang_timeout_s": Meta(ge=0, le=10**6),
    "restart_limit": Meta(ge=0),
}
"""What the numbers of a configuration may be."""


MIN_HANG_TIMEOUT_S = 3.0
"""A stage publishes every second, if the machine is not too busy."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a run depends on. Build it with `Config.load`."""

    model: str = ""
    """Folder of a Hugging Face checkpoint (config.json and safetensors), or a hub id."""
    revision: str = ""
    """Revision of a hub id; empty: its default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in; auto: what the checkpoint says."""
    generation_settings: Literal["honour", "ignore"] = "honour"
    """Whether generation_config.json changes tokens (repetition_penalty, suppress_tokens …) as it does in transformers;
    with ignore only its ends of text and a forced first token are taken (docs/generation.md)."""
    tier: Literal["disk", "host"] = "disk"
    """Where experts come from on a miss: the checkpoint's files, or a shared-memory store filled once at start."""
    device: str = "cpu"
    """Where the model is computed: cpu, cuda, or cuda:N. On a GPU expert_memory and kv_memory are its memory. Several
    GPUs (cuda:0,cuda:1) are as many engines, with so much memory each, and one host store between them."""
    expert_memory: str = "25%"
    """Expert slots: bytes (900MB, 1GiB) or a percentage of the model's experts."""
    host_memory: str = "100%"
    """Host store: bytes or a percentage of the model's experts. Of tier `host`, which must hold every expert; on a GPU
    of tier `disk` too, where it keeps what was read last (of several GPUs each has an equal part)."""
    kv_memory: str = "512MiB"
    """Budget of the KV caches of all running sequences: bytes, or (on the CPU) a percentage of the memory available at
    start."""
    batch_size: int = 8
    """Sequences that run at the same time, in one unit or spread over several."""
    units: Units = "auto"
    """Units in flight; auto measures one and two and keeps the faster."""
    grouping: Grouping = "auto"
    """Whether rows change units between steps so that each activates fewer experts: by greedy swapping or the paper's
    balanced K-means where the saving is above the cost of moving; auto: swapping where it was measured to pay."""
    prefill_tokens: int = 2048
    """Padded prompt tokens that may run in one prefill step (one prompt always may)."""
    queue_limit: int = 10_000
    """Requests that may wait; one more is refused as busy."""
    policy: Policy = "popularity"
    """Which expert goes first among those that no plan protects; the others are baselines (docs/decisions.md)."""
    slot_sharing: Literal["pool", "layer"] = "pool"
    """Whether all layers share the slots, or each has as many as any other."""
    predictor: Predictor = "auto"
    """Who forecasts routing; auto: the trained predictor that the model folder carries (path), else a token table.
    noise and opposite lie on purpose; oracle reads `oracle_routes`; the others are baselines (docs/prediction.md)."""
    predictor_file: str = ""
    """Trained predictor (`expertflow train`), for path and paper; empty: predictor.npz in the model folder."""
    hints: Literal["off", "router", "gates"] = "router"
    """Who names the experts of the next layer while a layer runs: its own router, or gates trained on traces."""
    gates_file: str = ""
    """File of trained gates, for hints = gates."""
    rank_victims: Literal["auto", "always", "never"] = "auto"
    """Whether forecasts say which expert goes first, or only which stay; auto: while they are accurate enough."""
    belief: Literal["measured", "literal"] = "measured"
    """Whether forecasts and hints are believed as far as they proved right, or taken at their word (baselines)."""
    prediction: Literal["auto", "on"] = "auto"
    """auto: forecasts and hints pause where they cost more time than they save."""
    oracle_routes: str = ""
    """Recording of an earlier run of the same requests, for predictor = oracle."""
    link_rate: str = ""
    """Tier host: emulate a link of so many bytes a second (8GB) between store and slots; empty: as fast as memory."""
    compute_threads: int = 0
    """Threads of the compute process; 0: all cores of this machine up to 2, else all but one."""
    reads_in_flight: int = 2
    """Reader threads of the loader."""
    record: str = ""
    """Folder for a recording of every step and its logits' digests, for `expertflow verify` and the oracle."""
    trace: str = ""
    """Folder for a trace of routing, forecasts and hints, for `expertflow replay` and `expertflow train`."""
    trace_hidden: float = 0.0
    """Share of the tokens of a trace whose hidden states are kept too, from 0 to 1."""
    timeline: str = ""
    """File for the spans of all stages in Chrome's trace format."""
    start_timeout_s: float = 300.0
    """How long a stage may take to become ready."""
    hang_timeout_s: float = 120.0
    """How long a stage may say nothing, or keep another waiting without doing anything, before it is ended and started
    again; 0: for ever."""
    spare_compute: bool = False
    """Keep a spare process that has imported torch already, so that the text stands still for a shorter time when
    compute dies. It takes up to 450 MB."""
    restart_limit: int = 5
    """Deaths of one stage within a minute after which the engine stops with the first cause."""

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            check_number(getattr(self, name), name, allowed)
        _check_texts(self)
        _check_files(self)
        for name in ("expert_memory", "host_memory", "kv_memory"):
            parse_memory(getattr(self, name), name)
        _check_link(self)
        _check_device(self)
        _check_patience(self)

    @property
    def on_device(self) -> bool:
        """Whether slots are in the memory of a device."""
        return self.device != "cpu"

    @property
    def devices(self) -> list[str]:
        """One an engine."""
        return read_devices(self.device)

    @classmethod
    def load(cls, preset: str = "cpu-disk", **overrides: Any) -> Config:
        """A preset (name, or path of a TOML file) with overrides.

        Raises UsageError for an unknown preset, an unknown key or a value of the wrong type.
        """
        values = {**_read_preset(preset), **overrides}
        if isinstance(values.get("model"), Path):
            values["model"] = os.fspath(values["model"])
        return _convert(values, cls, preset)


def _convert(values: dict[str, Any], kind: type[Config], where: str) -> Config:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise UsageError(str(error), f"configuration ({where})", f"Known options: {known}") from error


def _read_preset(preset: str) -> dict[str, Any]:
    try:
        return msgspec.toml.decode(_preset_bytes(preset))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"is not valid TOML: {error}", preset, "Correct the file") from error


def _preset_bytes(preset: str) -> bytes:
    if preset.endswith(".toml") and Path(preset).is_file():
        try:
            return Path(preset).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", preset, "Check its permissions") from error
    shipped = resources.files(__package__ or "expertflow.configs")
    file = shipped / f"{preset}.toml"
    if not file.is_file():
        names = sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir() if entry.name.endswith(".toml"))
        raise UsageError(f"no preset '{preset}'", "preset", f"Choose one of: {', '.join(names)}, or a .toml file")
    return file.read_bytes()


def _check_texts(config: Config) -> None:
    """What is no UTF-8 on a command line could not be told to another process."""
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if isinstance(value, str) and not is_text(value):
            raise UsageError(f"is not UTF-8: {ascii(value)}", name, "Rename it, or correct the option")


def _check_files(config: Config) -> None:
    if config.hints == "gates" and not config.gates_file:
        raise UsageError("hints 'gates' needs trained gates", "gates_file", "Train gates first (expertflow train)")
    if config.predictor == "oracle" and not config.oracle_routes:
        raise UsageError("predictor 'oracle' needs a recording", "oracle_routes", "Record a run first (record=FOLDER)")


def _check_device(config: Config) -> None:
    several = len(config.devices) > 1
    if not config.on_device:
        return
    if config.link_rate:
        raise UsageError("a device has a link of its own", "link_rate", "Leave it out, or use device = cpu")
    if parse_size(config.kv_memory, "kv_memory").count_bytes is None:
        remedy = "Give bytes, for example 4GiB"
        raise UsageError(f"'{config.kv_memory}' of a GPU's memory is not known before it is used", "kv_memory", remedy)
    written = [name for name in ("record", "trace", "timeline") if getattr(config, name)]
    if several and written:
        what = f"'{written[0]}' is written by one engine, and {len(config.devices)} devices have one each"
        raise UsageError(what, "device", "Name one device; `trace` and `verify` take one, too")


def _check_patience(config: Config) -> None:
    if 0 < config.hang_timeout_s < MIN_HANG_TIMEOUT_S:
        what = f"{config.hang_timeout_s:g} s is less than a healthy stage needs to speak"
        raise UsageError(what, "hang_timeout_s", f"Give {MIN_HANG_TIMEOUT_S:g} or more, or 0 to never look")


def _check_link(config: Config) -> None:
    if not config.link_rate:
        return
    if config.tier != "host":
        raise UsageError("only the host tier has a link to emulate", "link_rate", "Add tier = host, or leave it out")
    if not parse_memory(config.link_rate, "link_rate").count_bytes:
        raise UsageError(f"'{config.link_rate}' is not a rate", "link_rate", "Give bytes a second, for example 8GB")
