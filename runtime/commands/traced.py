"""What a trace holds, in words."""

from __future__ import annotations

from pathlib import Path

from ...configs.sizes import format_size
from ...workers.traces.folder import trace_files
from ...workers.traces.trace import Trace
from ..monitor.tables import share_text


def trace_facts(trace: Trace, folder: Path) -> dict[str, str]:
    """Sizes of a trace that lies in `folder`."""
    size_bytes = sum(file.stat().st_size for file in trace_files(folder, "*"))
    experts = f"{trace.top_k} of {trace.expert_count} in each of {trace.layers} MoE layers"
    decoded = 0.0 if trace.decoded is None else float(trace.decoded.mean())
    return {
        "trace": f"{folder} ({format_size(size_bytes)})",
        "sequences": f"{trace.sequences:,}",
        "tokens": f"{trace.tokens:,}, {share_text(decoded)} in decode steps",
        "experts": experts + (f", {trace.encoder_layers} of them the encoder's" if trace.encoder_layers else ""),
        "model": trace.model,
    }
