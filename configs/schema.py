"""The configuration: one frozen struct, presets in TOML beside it, overrides on top; unknown keys are errors."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Meta

from ..errors import UsageError
from .checks import check_kernels, check_number, is_text, read_devices
from .sizes import parse_memory, parse_size

TraceablePredictor = Literal["table", "path", "paper", "previous", "matrices", "everything"]
"""Predictors that need only token ids and routing: `expertflow replay` takes them, too."""
Predictor = Literal["auto", "none", TraceablePredictor, "noise", "opposite", "oracle"]
Units = Literal["auto", "one", "two", "three", "four"]
Grouping = Literal["off", "auto", "swap", "kmeans"]
Policy = Literal["popularity", "lru", "lfu", "lfru", "least-stale", "static", "ring"]

RANGES = {
    "batch_size": Meta(ge=1, le=2**20),
    "prefill_tokens": Meta(ge=1),
    "prefill_chunk": Meta(ge=0, multiple_of=32),
    "queue_limit": Meta(ge=1),
    "compute_threads": Meta(ge=0, le=1024),
    "reads_in_flight": Meta(ge=1, le=1024),
    "trace_hidden": Meta(ge=0, le=1),
    "link_latency_us": Meta(ge=0, le=10**6),
    "start_timeout_s": Meta(gt=0, le=10**6),
    "hang_timeout_s": Meta(ge=0, le=10**6),
    "restart_limit": Meta(ge=0),
}
"""Allowed range of every numeric field."""

AUTO = "auto"
"""Value of `expert_memory` for as much as fits."""
MIN_HANG_TIMEOUT_S = 3.0
"""A stage publishes every second, if the machine is not too busy."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a run depends on. Build it with `Config.load`."""

    model: str = ""
    """Folder of a Hugging Face checkpoint (config.json and safetensors), or a hub id."""
    revision: str = ""
    """Revision of a hub id; empty: its default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the computation; auto: as the checkpoint says."""
    generation_settings: Literal["honour", "ignore"] = "honour"
    """honour: generation_config.json changes tokens (repetition_penalty, suppress_tokens …) as it does in transformers;
    ignore: only its end-of-text ids and a forced first token are used (docs/generation.md)."""
    tier: Literal["disk", "host"] = "disk"
    """Source of experts on a miss: the checkpoint's files, or a shared-memory store filled once at start."""
    device: str = "cpu"
    """Device of the computation: cpu, cuda, or cuda:N. On a GPU expert_memory and kv_memory are its memory. Several
    GPUs (cuda:0,cuda:1) get an engine each, with this much memory each, and share one host store."""
    expert_memory: str = "25%"
    """Expert slots: bytes (900MB, 1GiB), a percentage of the model's experts, or auto: what fits beside all else, with
    a margin. serve, generate, chat and batch take auto where neither this nor a preset is given."""
    experts_in: Literal["auto", "packed", "dequantised"] = "auto"
    """Quantised experts in slots. packed: as they are stored, two to four times as many in the same memory, unpacked
    where they are computed; dequantised: in the type of the computation. auto: dequantised where all experts have room
    so, and on a GPU. The tokens are the same."""
    host_memory: str = "100%"
    """Host store: bytes or a percentage of the model's experts. With tier `host` it must hold every expert. On a GPU
    with tier `disk` it keeps the experts read last (several GPUs get an equal part each)."""
    kv_memory: str = "512MiB"
    """Budget of the KV caches of all running sequences: bytes, or (on the CPU) a percentage of the memory available at
    start."""
    batch_size: int = 8
    """Sequences that run at the same time, in one unit or spread over several."""
    units: Units = "auto"
    """Units in flight; auto measures one and two and keeps the faster."""
    grouping: Grouping = "auto"
    """Regrouping: rows change units between steps so that each unit uses fewer experts. swap (greedy) or kmeans (the
    paper's balanced K-means) where the saving exceeds the cost of moving; auto: swap where it was measured to pay."""
    batch_invariant: bool = False
    """Let no result depend on what else runs: a request has the same bits alone and in any batch, at a price in speed
    (docs/exactness.md). A request may say otherwise for itself. On the CPU only."""
    prefill_tokens: int = 2048
    """Padded prompt tokens that may run in one prefill step (one prompt always may)."""
    prefill_chunk: int = 512
    """Prompt tokens in one step of a prompt that is longer: it is read in chunks between the decode steps of others, so
    that these go on (a multiple of 32; 0: in one step)."""
    prefix_cache: Literal["on", "off"] = "on"
    """on: a prefix that prompts share is computed once. Copies stay in what kv_memory leaves free, and those used least
    recently go when running sequences need room (docs/architecture.md). Models whose caches cannot be cut have none."""
    queue_limit: int = 10_000
    """Requests that may wait; one more is refused as busy."""
    policy: Policy = "popularity"
    """Eviction policy for experts that no prediction protects; all but popularity are baselines (docs/decisions.md)."""
    slot_sharing: Literal["pool", "layer"] = "pool"
    """pool: all layers share the slots; layer: each layer has the same number of slots."""
    layer_loads: Literal["needed", "whole"] = "needed"
    """needed: a miss loads the experts that a layer chose; whole: all experts of that layer, in their order (the
    baseline SE-MoE, whose unit is the layer)."""
    predictor: Predictor = "auto"
    """Predictor of routing; auto: the trained predictor in the model folder (path), else a token table. noise and
    opposite are wrong on purpose; oracle reads `oracle_routes`; the others are baselines (docs/prediction.md)."""
    predictor_file: str = ""
    """Trained predictor (`expertflow train`), for path and paper; empty: predictor.npz in the model folder."""
    hints: Literal["off", "router", "gates"] = "router"
    """Source of hints for the next layer while a layer runs: that layer's own router, or gates trained on traces."""
    gates_file: str = ""
    """File of trained gates, for hints = gates."""
    rank_victims: Literal["auto", "always", "never"] = "auto"
    """always: predictions choose the expert to evict; never: they only protect experts; auto: always while accurate."""
    belief: Literal["measured", "literal"] = "measured"
    """measured: predictions and hints are calibrated by their hit rate; literal: not calibrated (baselines)."""
    prediction: Literal["auto", "on"] = "auto"
    """auto: predictions and hints pause where they cost more time than they save."""
    oracle_routes: str = ""
    """Recording of an earlier run of the same requests, for predictor = oracle."""
    link: Literal["copy", "dma"] = "copy"
    """Tier host. copy: the loader copies an expert into its slot; dma: no core copies. An expert takes its time on the
    emulated link of `link_rate`, then its slot becomes a view of the host store (docs/experiments.md)."""
    link_rate: str = ""
    """Tier host: emulate a link of this many bytes a second (8GB) between store and slots; empty: as fast as memory."""
    link_latency_us: float = 0.0
    """Microseconds that an expert takes on the emulated link before its first byte."""
    compute_threads: int = 0
    """Threads of the compute process; 0: all cores of this machine up to 2, else all but one."""
    kernels: str = "auto"
    """Kernels of the CPU. auto: timed at the first start on a machine, and kept. native, left_factor, linear or
    float32_tiles: that one wherever it can take a shape. Or the file of a table from doctor (docs/kernels.md)."""
    reads_in_flight: int = 2
    """Reader threads of the loader."""
    verify_reads: bool = False
    """Compare every expert that is read with a checksum of its stored bytes, made at the first start with these files
    and kept (docs/reliability.md). Needs the extra `checksums`."""
    record: str = ""
    """Folder for a recording of every step and its logits' digests, for `expertflow verify` and the oracle."""
    trace: str = ""
    """Folder for a trace of routing, predictions and hints, for `expertflow replay` and `expertflow train`."""
    trace_hidden: float = 0.0
    """Share of a trace's tokens whose hidden states are kept too, from 0 to 1."""
    timeline: str = ""
    """File for the spans of all stages in Chrome's trace format."""
    start_timeout_s: float = 300.0
    """Seconds that a stage may take to become ready."""
    hang_timeout_s: float = 120.0
    """Seconds that a stage may be silent, or keep another waiting without progress, before it is killed and restarted;
    0: no limit."""
    spare_compute: bool = False
    """Keep a spare process that has imported torch already, so that generation pauses for a shorter time when compute
    dies. The spare takes up to 450 MB."""
    restart_limit: int = 5
    """Deaths of one stage within a minute after which the engine stops with the first cause."""

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            check_number(getattr(self, name), name, allowed)
        _check_texts(self)
        _check_files(self)
        for name in ("expert_memory", "host_memory", "kv_memory"):
            if (name, getattr(self, name)) != ("expert_memory", AUTO):
                parse_memory(getattr(self, name), name)
        _check_link(self)
        check_kernels(self.kernels, self.on_device)
        _check_device(self)
        _check_hang_timeout(self)

    @property
    def on_device(self) -> bool:
        """Return whether slots are in the memory of a device."""
        return self.device != "cpu"

    @property
    def devices(self) -> list[str]:
        """Return the devices, one an engine."""
        return read_devices(self.device)

    @classmethod
    def load(cls, preset: str = "cpu-disk", **overrides: Any) -> Config:
        """Return a preset (name, or path of a TOML file) with overrides.

        Raises UsageError for an unknown preset, an unknown key or a value of the wrong type.
        """
        values = {**_read_preset(preset), **overrides}
        if isinstance(values.get("model"), Path):
            values["model"] = os.fspath(values["model"])
        return _convert(values, cls, preset)


def _convert(values: dict[str, Any], cls: type[Config], where: str) -> Config:
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        options = ", ".join(cls.__struct_fields__)
        raise UsageError(str(error), f"configuration ({where})", f"Known options: {options}") from error


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
    """Check that every text is UTF-8: another could not be sent to another process."""
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
    if not config.on_device:
        return
    if config.batch_invariant:
        raise UsageError("is possible on the CPU alone", "batch_invariant", "Leave it out, or use device = cpu")
    if config.link_rate or config.link == "dma":
        option = "link_rate" if config.link_rate else "link"
        raise UsageError(
            "a device has its own link, which cannot be emulated", option, "Leave it out, or use device = cpu"
        )
    if parse_size(config.kv_memory, "kv_memory").count_bytes is None:
        remedy = "Give bytes, for example 4GiB"
        raise UsageError(f"'{config.kv_memory}' of a GPU's memory is not known before start", "kv_memory", remedy)
    outputs = [name for name in ("record", "trace", "timeline") if getattr(config, name)]
    if len(config.devices) > 1 and outputs:
        what = f"'{outputs[0]}' is written by one engine, but each of {len(config.devices)} devices has its own"
        raise UsageError(what, "device", "Name one device; `trace` and `verify` take one, too")


def _check_hang_timeout(config: Config) -> None:
    if 0 < config.hang_timeout_s < MIN_HANG_TIMEOUT_S:
        what = f"{config.hang_timeout_s:g} s is shorter than the pauses of a healthy stage"
        raise UsageError(what, "hang_timeout_s", f"Give {MIN_HANG_TIMEOUT_S:g} or more, or 0 for no limit")


def _check_link(config: Config) -> None:
    if not config.link_rate:
        _require_no_link(config)
        return
    if config.tier != "host":
        raise UsageError("only the host tier has a link to emulate", "link_rate", "Add tier = host, or leave it out")
    if not parse_memory(config.link_rate, "link_rate", percentage=False).count_bytes:
        raise UsageError(f"'{config.link_rate}' is not a rate", "link_rate", "Give bytes a second, for example 8GB")


def _require_no_link(config: Config) -> None:
    """Check that no option speaks of an emulated link where there is none."""
    remedy = "Add tier = host and link_rate, for example 8GB"
    if config.link == "dma" and not config.on_device:
        raise UsageError("'dma' is an emulated link, and no rate is given for it", "link", remedy)
    if config.link_latency_us:
        raise UsageError("is of an emulated link, and no rate is given for one", "link_latency_us", remedy)
