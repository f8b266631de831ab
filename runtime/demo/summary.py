"""The table at the end of a demonstration."""

from __future__ import annotations

from rich.console import Console

from ...configs.sizes import format_size
from ..monitor.tables import expert_facts, facts_table, stage_table
from ..verify.report import Check
from .run import RunResult


def show_summary(console: Console, result: RunResult, kill: str) -> None:
    """Stages, experts, memory, and what the kill cost."""
    console.print()
    console.print(stage_table(result.reading.stages))
    console.print()
    console.print(facts_table(summary_facts(result, kill)))


def summary_facts(result: RunResult, kill: str) -> dict[str, str]:
    tokens = result.texts.tokens
    rate = f"{tokens / result.seconds:.1f} tokens/s"
    facts = {
        "text": f"{len(result.texts.all)} prompts, {tokens} tokens in {result.seconds:.1f} s ({rate})",
        **expert_facts(result.reading.experts),
        "memory of all processes (PSS)": format_size(result.reading.pss_bytes),
    }
    if result.pause_s is not None:
        facts[f"killed {kill}"] = f"the text stood still for {result.pause_s:.1f} s, then went on"
    return facts


def show_check(console: Console, check: Check) -> None:
    console.print(f"{check.claim}: {'yes' if check.holds else 'NO'} ({check.detail})", soft_wrap=True)
