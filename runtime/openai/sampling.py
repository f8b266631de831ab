"""Fields of a body to options of a `Request`, by one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import ExpertFlowError
from ...workers.scheduler.validation import SEED_LIMIT
from ..client.options import Prompt, Request
from ..text.structured import Grammar, Structured, read_structured
from .bodies import ResponseFormat, SamplingBody, StructuredBody
from .errors import refuse, to_api_error
from .model import ServedModel

MAX_STOPS = 16


class Option(NamedTuple):
    """Option of a `Request` that a field of a body sets. A neutral value leaves the option out."""

    name: str
    neutral: Any = None
    convert: Callable[[Any], Any] = lambda value: value


def _stops(stop: str | list[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS or not all(stops):
        raise refuse(f"stop: takes up to {MAX_STOPS} texts, none of them empty", param="stop")
    return stops


def _bias(logit_bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): value for token, value in logit_bias.items()}
    except ValueError as error:
        raise refuse("logit_bias: names must be token ids", param="logit_bias") from error


OPTIONS: dict[str, Option] = {
    "temperature": Option("temperature"),
    "top_p": Option("top_p"),
    "top_k": Option("top_k", convert=lambda top_k: max(top_k, 0)),
    "min_p": Option("min_p", 0),
    "presence_penalty": Option("presence_penalty", 0),
    "frequency_penalty": Option("frequency_penalty", 0),
    "repetition_penalty": Option("repetition_penalty"),
    "logit_bias": Option("logit_bias", {}, _bias),
    "stop": Option("stop", [], _stops),
    "include_stop_str_in_output": Option("include_stop", False),
    "stop_token_ids": Option("stop_ids", []),
    "ignore_eos": Option("eos_ids", False, lambda ignore: []),
    "min_tokens": Option("min_new_tokens", 0),
    "prompt_logprobs": Option("prompt_logprobs"),
    "skip_special_tokens": Option("skip_special_tokens", True),
    "return_routed_experts": Option("routed_experts", False),
    "priority": Option("priority", 0),
    "batch_invariant": Option("batch_invariant"),
}
"""Field of a body -> option of a request. Fields that need more than a conversion are read where they are used."""


def read_options(body: SamplingBody, model: ServedModel, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of a body's requests, without its limits, seed and logprobs. Raises ApiError (400).

    `schema`: JSON schema of answers that must call a tool.
    """
    defaults = model.sampling_defaults
    options: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        value = getattr(body, name)
        value = defaults.get(name) if value is None else value
        if value is not None and value != option.neutral:
            options[option.name] = option.convert(value)
    if rule := _structured(body, schema):
        options["structured"] = _compile(*rule)
    return options


def make_requests(
    prompts: Sequence[Prompt], limits: Sequence[int], options: dict[str, Any], choices: int, seed: int | None
) -> list[Request]:
    """Return the requests in prompt-major order. Choice i of a prompt samples with seed + i.

    `limits`: the longest output of each prompt, in tokens. The prompt's place in the body does not change its answer.
    """
    return [
        Request(prompt, max_new_tokens=limit, wait_when_busy=False, seed=_seed(seed, choice), **options)
        for prompt, limit in zip(prompts, limits, strict=True)
        for choice in range(choices)
    ]


def _seed(seed: int | None, choice: int) -> int | None:
    return None if seed is None or seed == -1 else (seed + choice) % SEED_LIMIT


def _structured(body: SamplingBody, schema: dict[str, Any] | None) -> tuple[Structured, str] | None:
    """Return the rule that the output follows and the field it comes from; None: it is free.

    Raises ApiError if there are two.
    """
    form, stated = body.response_format, body.structured_outputs
    rules = [(rule, "structured_outputs") for rule in (_rules(stated) if stated else [])]
    rules += [(_rule_of_format(form), "response_format")] if form is not None and form.type != "text" else []
    rules += [(Structured(json_schema=schema), "tool_choice")] if schema is not None else []
    if len(rules) > 1:
        raise refuse("Give one rule for the output: response_format, structured_outputs or tool_choice", rules[0][1])
    return rules[0] if rules else None


def _compile(rule: Structured, param: str) -> Grammar | None:
    """Return the grammar of a rule. Raises ApiError for one that cannot be followed."""
    try:
        return read_structured(rule, param)
    except ExpertFlowError as error:
        raise to_api_error(error, dict.fromkeys(("json_schema", "regex", "choice", "grammar"), param)) from error


def _rule_of_format(form: ResponseFormat) -> Structured:
    if form.type == "json_object":
        return Structured(json_schema={"type": "object"})
    if form.json_schema is None or form.json_schema.schema is None:
        raise refuse("response_format.json_schema.schema is missing", param="response_format")
    return Structured(json_schema=form.json_schema.schema)


def _rules(rule: StructuredBody) -> list[Structured]:
    stated: dict[str, Any] = {
        "json_schema": {"type": "object"} if rule.json_object else rule.json,
        "regex": rule.regex,
        "choice": rule.choice,
        "grammar": rule.grammar,
    }
    return [Structured(**{name: value}) for name, value in stated.items() if value is not None]
