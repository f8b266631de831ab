"""Checks of what a request may ask for. The client library makes the same checks earlier."""

from __future__ import annotations

import math

from ...ipc.messages import ErrorFacts, Sampling, Submit
from ...ipc.shared.attachments import is_attachment_name
from .limits import ComputeInfo, ModelInfo

SEED_LIMIT = 2**63
MAX_ID_LENGTH = 200


def request_error(what: str, where: str, remedy: str) -> ErrorFacts:
    """Return an error of kind `request`."""
    return ErrorFacts("request", what, where, remedy)


def sampling_error(sampling: Sampling) -> ErrorFacts | None:
    """Return the first error in `sampling`, or None."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return request_error(f"must be a finite number ≥ 0, not {sampling.temperature}", "temperature", "0 is greedy")
    if not 0 < sampling.top_p <= 1:
        return request_error(f"must be above 0 and at most 1, not {sampling.top_p}", "top_p", "1 does not restrict")
    if sampling.top_k < 0:
        return request_error(f"must not be negative, but is {sampling.top_k}", "top_k", "0 does not restrict")
    if not 0 <= sampling.seed < SEED_LIMIT:
        return request_error(f"must be from 0 to 2^63 - 1, not {sampling.seed}", "seed", "Leave it out to draw one")
    return None


def first_token_error(token: int | None, vocabulary: int) -> ErrorFacts | None:
    """Return an error if no output can begin with this token."""
    if token is None or 0 <= token < vocabulary:
        return None
    return request_error(
        f"{token} is not in the vocabulary of {vocabulary}", "first_token", "Leave it out, or name one"
    )


def eos_error(eos_ids: list[int] | None, vocabulary: int) -> ErrorFacts | None:
    """Return an error if an output cannot end with one of these tokens."""
    for token in eos_ids or ():
        if not 0 <= token < vocabulary:
            what = f"has {token}, which is not in the vocabulary of {vocabulary}"
            return request_error(what, "eos_ids", "Name tokens of the model; an empty list never stops")
    return None


def ending_error(max_new_tokens: int, deadline_ms: int | None) -> ErrorFacts | None:
    """Return an error if the length or the deadline of a request is not positive."""
    if max_new_tokens < 1:
        return request_error(f"must be at least 1, not {max_new_tokens}", "max_new_tokens", "Ask for a token or more")
    if deadline_ms is not None and deadline_ms < 1:
        return request_error(f"must be above 0, not {deadline_ms} ms", "deadline", "Leave it out to wait without limit")
    return None


def prompt_error(prompt_ids: list[int], vocabulary: int, context: int) -> ErrorFacts | None:
    """Return an error if the model cannot read the prompt. It may fill the context: its next token is still defined."""
    if not prompt_ids:
        return request_error("is empty", "prompt", "Give at least one token id")
    if len(prompt_ids) > context:
        what = f"has {len(prompt_ids)} tokens, the model's context is {context}"
        return request_error(what, "prompt", "Shorten it")
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
        position, token = next((i, t) for i, t in enumerate(prompt_ids) if not 0 <= t < vocabulary)
        what = f"token id {token} at position {position} is not in the vocabulary of {vocabulary}"
        return request_error(what, "prompt", "Was it made by this model's tokenizer?")
    return None


def submit_error(submit: Submit, model: ModelInfo) -> ErrorFacts | None:
    """Return the first error in a request for this model, or None."""
    if not 0 < len(submit.request_id) <= MAX_ID_LENGTH:
        what = f"has {len(submit.request_id)} characters, 1 to {MAX_ID_LENGTH} are allowed"
        return request_error(what, "request_id", "Use a unique id, such as a UUID")
    if submit.attachment and not is_attachment_name(submit.attachment):
        return request_error("is not the name of an attachment", "attachment", "Send images through the client")
    return (
        prompt_error(submit.prompt_ids, model.vocabulary, model.context)
        or ending_error(submit.max_new_tokens, submit.deadline_ms)
        or sampling_error(submit.sampling)
        or first_token_error(submit.sampling.first_token, model.vocabulary)
        or eos_error(submit.eos_ids, model.vocabulary)
        or resume_error(
            submit.resume_ids,
            model.vocabulary,
            token_limit(len(submit.prompt_ids), submit.max_new_tokens, model.context),
        )
    )


def resume_error(resume_ids: list[int], vocabulary: int, limit: int) -> ErrorFacts | None:
    """Return an error if this cannot be the beginning of an output of at most `limit` tokens."""
    if len(resume_ids) > limit:
        what = f"has {len(resume_ids)} tokens, the output can have {limit} at most"
        return request_error(what, "resume_ids", "Send what was delivered for this request, or nothing")
    if any(not 0 <= token < vocabulary for token in resume_ids):
        return request_error("has a token that is not in the vocabulary", "resume_ids", "Send what was delivered")
    return None


def token_limit(prompt: int, max_new_tokens: int, context: int) -> int:
    """Return the output tokens after which a request ends by `length`: as asked, or when the context is full."""
    return min(max_new_tokens, context - prompt + 1)


def positions_needed(prompt: int, max_new_tokens: int, context: int) -> int:
    """Return the KV positions of a sequence at its end; its last token is never fed back."""
    return min(prompt + max_new_tokens - 1, context)


def memory_error(positions: int, compute: ComputeInfo, kv_bytes: int) -> ErrorFacts | None:
    """Return an error if a sequence exceeds the KV budget even when it runs alone (I5)."""
    needed = positions * compute.kv_bytes_per_position + compute.kv_bytes_per_row
    if needed <= kv_bytes:
        return None
    what = f"{positions} positions need {needed:,} bytes of KV cache, the budget is {kv_bytes:,}"
    remedy = "Shorten the prompt, lower max_new_tokens, or raise kv_memory"
    return ErrorFacts("budget", what, "prompt", remedy)
