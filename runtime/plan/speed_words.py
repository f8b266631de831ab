"""The expected speed in words, for a table; also with experts in fewer bits."""

from __future__ import annotations

from ...configs.sizes import format_size
from ..monitor.tables import share_text
from .by_bits import BitsFit
from .forecast import StepForecast
from .proposal import Proposal
from .speed import Speed


def speed_facts(speed: Speed) -> dict[str, str]:
    """Return label -> text of the expected speed."""
    facts = {"expected speed": ""}
    for step in speed.decode:
        rows = "one sequence" if step.rows == 1 else f"{step.rows} sequences"
        facts[f"decoding {rows}"] = f"{step.tokens_per_s:.3g} tokens/s ({_step_words(step)})"
    prefill = speed.prefill
    facts[f"a prompt of {prefill.rows} tokens"] = f"{prefill.step_s:.2g} s ({_step_words(prefill)})"
    if speed.disk is not None:
        how = "past the page cache" if speed.disk.direct else "pages dropped before"
        facts["reading experts"] = f"{format_size(speed.read_bytes_per_s)}/s, measured on the model's files ({how})"
    elif speed.read_bytes_per_s != float("inf"):
        facts["reading experts"] = f"{format_size(speed.read_bytes_per_s)}/s from the host store"
    facts["routing"] = speed.routing
    facts["past forecasts here"] = past_words(speed)
    return facts


def bits_facts(fits: list[BitsFit]) -> dict[str, str]:
    """Return label -> text, a line for each number of bits."""
    if not fits:
        return {}
    lines = {f"experts in {fit.bits} bits": _bits_words(fit) for fit in fits}
    return {"by bits (expertflow quantize)": "", **lines}


def _bits_words(fit: BitsFit) -> str:
    words = f"{format_size(fit.experts_bytes)}; {share_text(fit.slots_share)} of them in these slots"
    rates = " and ".join(f"{step.tokens_per_s:.3g}" for step in fit.decode)
    rows = " and ".join(str(step.rows) for step in fit.decode)
    return f"{words}; {rates} tokens/s with {rows} sequences" if rates else words


def past_words(speed: Speed) -> str:
    """Return how far off earlier forecasts were on this machine: of this model, else of others."""
    if speed.past_error is not None:
        return f"were off by {100 * speed.past_error:.0f} % ({_runs(speed.past_runs)} of this model)"
    if speed.others_error is None:
        return "none"
    return f"were off by {100 * speed.others_error:.0f} % ({_runs(speed.others_runs)} of other models)"


def _runs(count: int) -> str:
    return "one run" if count == 1 else f"median of {count:,} runs"


def choice_words(proposal: Proposal) -> str:
    """Return a sentence on what `serve` and `generate` choose without memory options, and what that would gain."""
    if not proposal.choice:
        return ""
    words = f"Without memory options, serve and generate choose {proposal.choice}."
    if proposal.choice_speed is None or proposal.speed is None:
        return words
    mine, chosen = proposal.speed.decode[-1], proposal.choice_speed.decode[-1]
    return f"{words} That would be {chosen.tokens_per_s:.3g} instead of {mine.tokens_per_s:.3g} tokens/s."


def _step_words(step: StepForecast) -> str:
    if not step.read_s:
        return f"a step of {1e3 * step.step_s:,.0f} ms, all of it computing"
    parts = f"computing {1e3 * step.compute_s:,.0f}, reading {step.misses:,.0f} experts {1e3 * step.read_s:,.0f}"
    return f"a step of {1e3 * step.step_s:,.0f} ms: {parts}"
