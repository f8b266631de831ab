"""What a person asks a replay for, in words, as the parts of an experiment."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ...configs.schema import Config
from ...configs.sizes import parse_memory, parse_size
from ...errors import UsageError
from ...workers.loader.policies import POLICIES
from ...workers.predictor.base.forecaster import Forecaster
from ...workers.predictor.base.model_shape import ModelShape
from ...workers.predictor.registry import make_forecaster, predictor_file
from ...workers.traces.trace import Trace
from .experiment import BOUNDS, HintSource, no_plans
from .hints import EmulatedHints, Quality
from .machine import Machine, RecordedTimings
from .predictions import ForecastPlans, Planning, RecordedHints, RecordedPlans
from .source import ReplaySource

EXPERTS_SHARE = 0.7
"""Of the time of a layer that its experts take; the rest is attention and the router."""
RECORDED = "recorded"


def policy_names(text: str) -> list[str]:
    """`all` or names with commas, and the bounds. Raises UsageError for an unknown one."""
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES and name not in BOUNDS:
            raise UsageError(f"no policy '{name}'", "policies", f"Choose from: all, {', '.join(POLICIES)}")
    return [*names, *(bound for bound in BOUNDS if bound not in names)]


def slot_counts(text: str, trace: Trace) -> list[int]:
    """Slots for each layer, or shares, with commas → slots in all. Raises UsageError for too many or too few."""
    counts = []
    for part in text.split(","):
        size = parse_size(part, "slots")
        each = size.share * trace.expert_count if size.share is not None else float(size.of(0))
        if not 1 <= each * trace.layers <= trace.expert_count * trace.layers:
            what = f"'{part.strip()}' is not from 1 slot in all to the {trace.expert_count} experts of a layer"
            raise UsageError(what, "slots", "Write for example 8,16,25%")
        counts.append(round(each * trace.layers))
    return counts


def hint_source(text: str, source: ReplaySource, seed: int) -> HintSource | None:
    """RECALL,PRECISION or `recorded`; empty: none. Raises UsageError if it cannot be read, or nothing was recorded."""
    if not text:
        return None
    if text == RECORDED:
        if source.log is None or source.places is None:
            raise UsageError("the trace has no hints", "hints", "Give RECALL,PRECISION such as 0.85,0.85")
        return RecordedHints(source.log, source.places)
    try:
        recall, precision = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"cannot read '{text}'", "hints", "Write for example 0.85,0.85") from error
    return EmulatedHints(source.trace, source.steps, Quality(recall=recall, precision=precision), seed=seed)


def layer_time_ns(layer_ms: float, source: ReplaySource) -> float:
    """As given, or the mean of what was recorded. Raises UsageError if neither is known."""
    if layer_ms > 0:
        return layer_ms * 1e6
    if source.log is None or source.places is None:
        raise UsageError("how long compute takes was not recorded", "layer_ms", "Give the milliseconds of a layer")
    return float(source.log.compute_ns[source.places].sum()) / len(source.places) / source.trace.layers


def expert_size_bytes(text: str, source: ReplaySource) -> int:
    """As given, or as recorded; 0: unknown."""
    if text:
        return positive_bytes(text, "expert_bytes")
    return 0 if source.log is None else source.log.header.expert_bytes


def positive_bytes(text: str, option: str) -> int:
    """Raises UsageError for a share or nothing."""
    if count_bytes := parse_memory(text, option).count_bytes:
        return count_bytes
    raise UsageError(f"must be bytes, at least 1, not '{text}'", option, "Write for example 9MB")


def make_machine(
    link_rate: str, layer_ns: float, expert_bytes: int, message_us: float, source: ReplaySource
) -> Machine:
    """Raises UsageError if the size of an expert is not known, or a value makes no sense."""
    if not expert_bytes:
        raise UsageError("the size of an expert was not recorded", "expert_bytes", "Give it, for example 9MB")
    message_ns = round(message_us * 1e3)
    return Machine(
        expert_bytes=expert_bytes,
        link_bytes_per_s=positive_bytes(link_rate, "link_rate"),
        layer_ns=round(layer_ns * (1 - EXPERTS_SHARE)),
        expert_ns=round(layer_ns * EXPERTS_SHARE / source.unions.mean()),
        message_ns=message_ns,
        decide_ns=message_ns,
    )


def recorded_timings(layer_ms: float, source: ReplaySource) -> RecordedTimings | None:
    """None if another time is given, or none was recorded."""
    if layer_ms > 0 or source.log is None or source.places is None:
        return None
    return RecordedTimings(source.log, source.places, source.unions, EXPERTS_SHARE)


def plan_maker(name: str, file: str, forecast_ms: float, source: ReplaySource) -> Callable[[], Planning | None]:
    """Makes plans afresh for each run: those of a predictor as `Config.predictor` names it, or `recorded`.

    Raises UsageError, also later, if nothing was recorded, or a file is missing.
    """
    if name == "none":
        return no_plans
    if name == RECORDED:
        if source.log is None or source.places is None:
            raise UsageError("the trace has no plans", "predictor", "Use --predictor table, for example")
        log, places = source.log, source.places
        return lambda: RecordedPlans(log, places)
    config = msgspec.convert({"predictor": name, "predictor_file": file}, Config)

    def plans() -> Planning | None:
        forecaster = _forecaster(config, source.trace)
        return None if forecaster is None else ForecastPlans(source.program, forecaster, round(forecast_ms * 1e6))

    return plans


def _forecaster(config: Config, trace: Trace) -> Forecaster | None:
    subject = ModelShape(layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, fingerprint=trace.model)
    if config.predictor == "path" and trace.vocabulary is not None:
        from ...workers.predictor.path.file import read_path
        from ...workers.predictor.path.forecaster import PathForecaster

        return PathForecaster(read_path(predictor_file(config, subject)), trace.vocabulary.__getitem__)
    return make_forecaster(config, subject)
