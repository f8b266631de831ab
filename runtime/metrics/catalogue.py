"""The metrics that are one counter or level of one stage, by name. docs/metrics.md describes all metrics."""

from __future__ import annotations

from typing import NamedTuple

NS = 1e-9


class StageMetric(NamedTuple):
    """A metric whose value is `scale` times what a stage publishes under the name `counter`."""

    name: str
    """Without the prefix, and for counters without `_total`."""
    stage: str
    counter: str
    text: str
    scale: float = 1.0


COUNTERS = (
    StageMetric("expert_hits", "compute", "hits", "Experts that were in a slot when their layer began."),
    StageMetric("expert_misses", "compute", "misses", "Experts that a layer had to wait for."),
    StageMetric("expert_stall_seconds", "compute", "stall_ns", "Time for which compute waited for experts.", NS),
    StageMetric("prefill_tokens", "compute", "prefill_tokens", "Prompt tokens computed, recomputed ones again."),
    StageMetric("expert_loads", "loader", "loads", "Experts loaded into slots."),
    StageMetric("expert_loaded_bytes", "loader", "bytes", "Bytes of experts loaded into slots."),
    StageMetric("expert_load_failures", "loader", "failed", "Loads of experts that failed."),
    StageMetric("expert_evictions", "loader", "evictions", "Experts that gave up their slots."),
    StageMetric("prefetches", "loader", "prefetches", "Loads that began because of a prediction or hint."),
    StageMetric("prefetches_useful", "loader", "useful", "Prefetches that were used while they were in a slot."),
    StageMetric("prefetches_wasted", "loader", "wasted", "Prefetches that were evicted unused."),
    StageMetric("prefetches_late", "loader", "promoted", "Prefetches that a layer had to wait for."),
    StageMetric("predictions_lapsed", "loader", "dropped", "Predicted experts whose layer began before a load."),
    StageMetric("predicted_experts", "loader", "predicted", "Experts that predictions called likely."),
    StageMetric("needed_experts", "loader", "needed", "Experts that layers with a prediction used."),
    StageMetric("predicted_needed_experts", "loader", "predicted_needed", "Experts that were predicted and used."),
    StageMetric("predictions_dropped", "predictor", "dropped_forecasts", "Predictions that were asked for too late."),
    StageMetric("requests_accepted", "scheduler", "accepted", "Requests accepted."),
    StageMetric("requests_abandoned", "scheduler", "abandoned", "Requests dropped since their client vanished."),
    StageMetric("prompt_tokens", "scheduler", "prompt_tokens", "Tokens of the prompts of requests that have begun."),
    StageMetric("generation_tokens", "scheduler", "tokens", "Output tokens."),
    StageMetric("steps", "scheduler", "steps", "Forward passes of a sub-batch."),
    StageMetric("rows_recomputed", "scheduler", "recomputed", "Rows computed again after a death of compute."),
    StageMetric("rows_moved", "scheduler", "rows_moved", "Rows moved to another sub-batch for fewer experts."),
    StageMetric("prefix_cache_row_queries", "scheduler", "prefix_queries", "Rows looked up in the prefix cache."),
    StageMetric("prefix_cache_row_hits", "scheduler", "prefix_hits", "Rows that began with a kept prefix."),
    StageMetric("prefix_cache_hit_tokens", "scheduler", "prefix_tokens", "Tokens that were not computed for that."),
)
GAUGES = (
    StageMetric("kv_cache_bytes", "compute", "kv_bytes", "Size of the KV caches."),
    StageMetric("num_requests_running", "scheduler", "running", "Requests that have a row."),
    StageMetric("num_requests_waiting", "scheduler", "queue", "Requests in the queue."),
    StageMetric("kv_cache_reserved_bytes", "scheduler", "kv_reserved_bytes", "KV memory reserved for rows."),
    StageMetric("kv_cache_prefix_bytes", "scheduler", "kv_prefix_bytes", "KV memory of kept prefixes."),
    StageMetric("units", "scheduler", "units", "Sub-batches in flight."),
    StageMetric("prediction_enabled", "scheduler", "prediction_wanted", "0 if predictions cost more than they save."),
    StageMetric("prediction_accuracy", "loader", "accuracy", "F1 of predictions over recent layers, 0 to 1."),
    StageMetric("prefetch_threshold", "loader", "wanted_chance", "Least chance of use that is prefetched, 0 to 1."),
)
HISTOGRAMS = {
    "time_to_first_token": ("time_to_first_token_seconds", "Time from the acceptance of a request to its first token."),
    "inter_token_latency": ("inter_token_latency_seconds", "Time between two tokens of a request."),
    "e2e_latency": ("e2e_request_latency_seconds", "Time from the acceptance of a request to its end."),
    "queue_time": ("request_queue_time_seconds", "Time that requests spent in the queue."),
}
"""Histogram of the scheduler -> name and text of the metric."""
