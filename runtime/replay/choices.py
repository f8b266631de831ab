"""Parser of the options of `expertflow replay` into the parts of an experiment."""

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
from .experiment import BOUNDS, HintSource, no_predictions
from .hints import EmulatedHints, Quality
from .machine import Machine, RecordedTimings
from .predictions import ForecasterPredictions, PredictionSource, RecordedHints, RecordedPredictions
from .source import ReplaySource

EXPERTS_SHARE = 0.7
"""Share of a layer's time that its experts take; attention and router take the rest."""
RECORDED = "recorded"


def policy_names(text: str) -> list[str]:
    """Return the policies in `text`, which is `all` or names with commas, and the bounds.

    Raises UsageError for an unknown name.
    """
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES and name not in BOUNDS:
            raise UsageError(f"no policy '{name}'", "policies", f"Choose from: all, {', '.join(POLICIES)}")
    return [*names, *(bound for bound in BOUNDS if bound not in names)]


def slot_counts(text: str, trace: Trace) -> list[int]:
    """Return slots in all for each entry of `text`: slots for each layer, or shares, with commas.

    Raises UsageError for too many or too few slots.
    """
    counts = []
    for part in text.split(","):
        size = parse_size(part, "slots")
        per_layer = size.share * trace.expert_count if size.share is not None else float(size.of(0))
        if not 1 <= per_layer * trace.layers <= trace.expert_count * trace.layers:
            what = f"'{part.strip()}' is not from 1 slot in all to the {trace.expert_count} experts of a layer"
            raise UsageError(what, "slots", "Write for example 8,16,25%")
        counts.append(round(per_layer * trace.layers))
    return counts


def hint_source(text: str, source: ReplaySource, seed: int) -> HintSource | None:
    """Return the hints that `text` names: RECALL,PRECISION or `recorded`; None if it is empty.

    Raises UsageError if `text` cannot be read, or if nothing was recorded.
    """
    if not text:
        return None
    if text == RECORDED:
        if source.log is None or source.log_indices is None:
            raise UsageError("the trace has no hints", "hints", "Give RECALL,PRECISION such as 0.85,0.85")
        return RecordedHints(source.log, source.log_indices)
    try:
        recall, precision = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"cannot read '{text}'", "hints", "Write for example 0.85,0.85") from error
    return EmulatedHints(source.trace, source.steps, Quality(recall=recall, precision=precision), seed=seed)


def layer_time_ns(layer_ms: float, source: ReplaySource) -> float:
    """Return the time of a layer in ns, as given or the recorded mean. Raises UsageError if neither is known."""
    if layer_ms > 0:
        return layer_ms * 1e6
    if source.log is None or source.log_indices is None:
        raise UsageError("how long compute takes was not recorded", "layer_ms", "Give the milliseconds of a layer")
    return float(source.log.compute_ns[source.log_indices].sum()) / len(source.log_indices) / source.trace.layers


def expert_size_bytes(text: str, source: ReplaySource) -> int:
    """Return the bytes of an expert, as given or as recorded; 0: unknown."""
    if text:
        return positive_bytes(text, "expert_bytes")
    return 0 if source.log is None else source.log.header.expert_bytes


def positive_bytes(text: str, option: str) -> int:
    """Return the bytes in `text`. Raises UsageError for a share or for 0."""
    if count_bytes := parse_memory(text, option, percentage=False).count_bytes:
        return count_bytes
    raise UsageError(f"must be bytes, at least 1, not '{text}'", option, "Write for example 9MB")


def make_machine(
    link_rate: str, layer_ns: float, expert_bytes: int, message_us: float, source: ReplaySource
) -> Machine:
    """Return the machine of a timed replay.

    Raises UsageError if the size of an expert is not known, or a value is out of range.
    """
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
    """Return the recorded times of compute; None if another time is given, or none was recorded."""
    if layer_ms > 0 or source.log is None or source.log_indices is None:
        return None
    return RecordedTimings(source.log, source.log_indices, source.unions, EXPERTS_SHARE)


def prediction_maker(
    name: str, file: str, forecast_ms: float, source: ReplaySource
) -> Callable[[], PredictionSource | None]:
    """Return a function that makes the predictions of one run: those of the predictor `name`, or the recorded ones.

    `name` is as in `Config.predictor`, or `recorded`. This function, or the one it returns, raises UsageError if
    nothing was recorded or a file is missing.
    """
    if name == "none":
        return no_predictions
    if name == RECORDED:
        if source.log is None or source.log_indices is None:
            raise UsageError("the trace has no plans", "predictor", "Use --predictor table, for example")
        log, log_indices = source.log, source.log_indices
        return lambda: RecordedPredictions(log, log_indices)
    config = msgspec.convert({"predictor": name, "predictor_file": file}, Config)

    def make() -> PredictionSource | None:
        forecaster = _forecaster(config, source.trace)
        return (
            None if forecaster is None else ForecasterPredictions(source.program, forecaster, round(forecast_ms * 1e6))
        )

    return make


def _forecaster(config: Config, trace: Trace) -> Forecaster | None:
    shape = ModelShape(layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, fingerprint=trace.model)
    if config.predictor == "path" and trace.vocabulary is not None:
        from ...workers.predictor.path.file import read_path
        from ...workers.predictor.path.forecaster import PathForecaster

        return PathForecaster(read_path(predictor_file(config, shape)), trace.vocabulary.__getitem__)
    return make_forecaster(config, shape)
