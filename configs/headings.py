"""The headings under which a command's help shows the options of the configuration."""

from __future__ import annotations

HEADINGS: dict[str, tuple[str, ...]] = {
    "Model": ("model", "revision", "dtype", "device"),
    "Memory": ("tier", "expert_memory", "experts_in", "host_memory", "kv_memory"),
    "Generation": (
        "batch_size",
        "prefill_tokens",
        "prefill_chunk",
        "prefix_cache",
        "queue_limit",
        "generation_settings",
        "batch_invariant",
        "units",
        "grouping",
    ),
    "Engine": (
        "predictor",
        "predictor_file",
        "prediction",
        "compute_threads",
        "kernels",
        "reads_in_flight",
        "verify_reads",
        "timeline",
        "start_timeout_s",
        "hang_timeout_s",
        "spare_compute",
        "restart_limit",
    ),
    "Research": (
        "policy",
        "slot_sharing",
        "layer_loads",
        "hints",
        "gates_file",
        "rank_victims",
        "belief",
        "oracle_routes",
        "link",
        "link_rate",
        "link_latency_us",
        "record",
        "trace",
        "trace_hidden",
    ),
}
"""Heading -> fields; every field of `Config` once. Flags, presets and `Config` itself have no headings."""
