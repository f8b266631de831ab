"""Checks of what a request may ask for. The client library makes the same checks earlier."""

from __future__ import annotations

import math

from ...ipc.messages import Details, ErrorFacts, Sampling, Submit
from ...ipc.shared.attachments import is_attachment_name
from ..grammars.library import MAX_GRAMMAR_BYTES
from .limits import ComputeInfo, ModelInfo

SEED_LIMIT = 2**63
MAX_ID_LENGTH = 200
MAX_PENALTY = 2.0
"""Limit of presence and frequency penalty in both directions, as with OpenAI."""
MAX_LOGIT_BIAS = 100.0
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
"""Likeliest tokens that a request may ask for beside each token."""


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
    if not 0 <= sampling.min_p <= 1:
        return request_error(f"must be from 0 to 1, not {sampling.min_p}", "min_p", "0 does not restrict")
    if not 0 <= sampling.seed < SEED_LIMIT:
        return request_error(f"must be from 0 to 2^63 - 1, not {sampling.seed}", "seed", "Leave it out to draw one")
    return penalty_error(sampling) or bias_error(sampling.logit_bias) or grammar_error(sampling)


def penalty_error(sampling: Sampling) -> ErrorFacts | None:
    """Return the first error in the penalties, or None."""
    factor = sampling.repetition_penalty
    if factor is not None and not (math.isfinite(factor) and factor > 0):
        return request_error(f"must be a finite number above 0, not {factor}", "repetition_penalty", "1 is neutral")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -MAX_PENALTY <= (penalty := getattr(sampling, name)) <= MAX_PENALTY:
            what = f"must be from -{MAX_PENALTY:g} to {MAX_PENALTY:g}, not {penalty}"
            return request_error(what, name, "0 is neutral")
    return None


def bias_error(biases: dict[int, float]) -> ErrorFacts | None:
    """Return an error if these biases are too many or too large, or None."""
    if len(biases) > MAX_LOGIT_BIASES:
        what = f"has {len(biases):,} tokens, {MAX_LOGIT_BIASES:,} are allowed"
        return request_error(what, "logit_bias", "Name fewer tokens")
    for token, bias in biases.items():
        if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            what = f"must be from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}, but is {bias} for token {token}"
            return request_error(what, "logit_bias", "-100 all but bans a token, 100 all but forces it")
    return None


def grammar_error(sampling: Sampling) -> ErrorFacts | None:
    """Return an error if the grammar is too long, or cannot be followed with the other options, or None."""
    if not sampling.grammar:
        return None
    if len(sampling.grammar.encode()) > MAX_GRAMMAR_BYTES:
        what = f"is longer than {MAX_GRAMMAR_BYTES:,} bytes as a grammar"
        return request_error(what, "structured", "Give a shorter one")
    if sampling.first_token is not None:
        return request_error("cannot be combined with a forced first token", "structured", "Leave first_token out")
    return None


def details_error(details: Details) -> ErrorFacts | None:
    """Return an error if more logprobs are asked for than a request may have, or None."""
    for name in ("logprobs", "prompt_logprobs"):
        if (count := getattr(details, name)) is not None and not 0 <= count <= MAX_LOGPROBS:
            what = f"must be from 0 to {MAX_LOGPROBS}, not {count}"
            return request_error(what, name, "0 gives the tokens themselves alone; leave it out for none")
    return None


def first_token_error(token: int | None, vocabulary: int) -> ErrorFacts | None:
    """Return an error if no output can begin with this token."""
    if token is None or 0 <= token < vocabulary:
        return None
    return request_error(
        f"{token} is not in the vocabulary of {vocabulary}", "first_token", "Leave it out, or name one"
    )


def vocabulary_error(submit: Submit, vocabulary: int) -> ErrorFacts | None:
    """Return an error if an option names a token that the model does not have."""
    remedy = "Name tokens of the model; an empty list never stops"
    for name, tokens in (("eos_ids", submit.eos_ids or ()), ("stop_ids", submit.stop_ids)):
        if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
            return request_error(f"has {wrong[0]}, which is not in the vocabulary of {vocabulary}", name, remedy)
    if wrong := [token for token in submit.sampling.logit_bias if not 0 <= token < vocabulary]:
        what = f"has {wrong[0]}, which is not in the vocabulary of {vocabulary}"
        return request_error(what, "logit_bias", "Name tokens of the model")
    return None


def ending_error(
    max_new_tokens: int, min_new_tokens: int | None, deadline_ms: int | None, details: Details
) -> ErrorFacts | None:
    """Return an error if the lengths or the deadline of a request make no sense."""
    least = 0 if details.of_prompt else 1
    if max_new_tokens < least:
        remedy = "Ask for a token or more; with prompt_logprobs or routed_experts 0 is allowed"
        return request_error(f"must be at least {least}, not {max_new_tokens}", "max_new_tokens", remedy)
    if min_new_tokens is not None and not 0 <= min_new_tokens <= max_new_tokens:
        what = f"must be from 0 to max_new_tokens, which is {max_new_tokens}, not {min_new_tokens}"
        return request_error(what, "min_new_tokens", "Leave it out for no minimum")
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
    for field, text in (("user", submit.user), ("origin", submit.origin)):
        if len(text) > MAX_ID_LENGTH:
            what = f"has {len(text)} characters, {MAX_ID_LENGTH} are allowed"
            return request_error(what, field, "Give a short name, such as a digest")
    if submit.attachment and not is_attachment_name(submit.attachment):
        return request_error("is not the name of an attachment", "attachment", "Send images through the client")
    return (
        prompt_error(submit.prompt_ids, model.vocabulary, model.context)
        or ending_error(submit.max_new_tokens, submit.sampling.min_new_tokens, submit.deadline_ms, submit.details)
        or sampling_error(submit.sampling)
        or first_token_error(submit.sampling.first_token, model.vocabulary)
        or vocabulary_error(submit, model.vocabulary)
        or details_error(submit.details)
        or encoder_error(submit.details, model)
        or resume_error(
            submit.resume_ids,
            model.vocabulary,
            token_limit(len(submit.prompt_ids), submit.max_new_tokens, model.context),
        )
    )


def encoder_error(details: Details, model: ModelInfo) -> ErrorFacts | None:
    """Return an error if something is asked about the prompt that an encoder reads, or None."""
    if model.decoder_start is None or not details.of_prompt:
        return None
    where = "routed_experts" if details.routed_experts else "prompt_logprobs"
    what = "is not possible with an encoder: it gives its prompt no logits, and other layers than the output's"
    return request_error(what, where, "Leave it out; logprobs of the output are possible")


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
    return min(prompt + max(max_new_tokens, 1) - 1, context)


def memory_error(positions: int, compute: ComputeInfo, kv_bytes: int) -> ErrorFacts | None:
    """Return an error if a sequence exceeds the KV budget even when it runs alone (I5)."""
    needed = positions * compute.kv_bytes_per_position + compute.kv_bytes_per_row
    if needed <= kv_bytes:
        return None
    what = f"{positions} positions need {needed:,} bytes of KV cache, the budget is {kv_bytes:,}"
    remedy = "Shorten the prompt, lower max_new_tokens, or raise kv_memory"
    return ErrorFacts("budget", what, "prompt", remedy)


def unreadable_error(what: str) -> ErrorFacts:
    """Return the error of a message that could not be read."""
    return request_error(f"the message could not be read: {what}", "protocol", "See docs/protocol.md")


def stopping_error() -> ErrorFacts:
    """Return the error of a request that is open when the engine stops."""
    return ErrorFacts("engine", "the engine stopped before the request was done", "engine", "Start it and submit again")


def crash_error(deaths: int) -> ErrorFacts:
    """Return the error of a request on which compute died `deaths` times in a row."""
    what = f"compute died {deaths} times in a row while it ran this request"
    return ErrorFacts("request", what, "compute", "Its log says why; other requests were not disturbed")
