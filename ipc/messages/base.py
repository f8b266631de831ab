"""The base of every message: a frozen, tagged struct, a MessagePack map with the class name under `type`."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...errors import ExpertFlowError, error_from_code

CauseKind = Literal["", "miss", "hint", "prediction", "policy"]
"""Reason why an expert moves: compute waits for it, a hint or a prediction names it, or the policy uses a free slot."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages. Subclasses repeat `frozen=True`: type checkers need it."""


class Cause(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Reason why an expert is filled, copied or recalled, with the layer and the step it is for (-1: none).

    The loader's decision sets the cause; fill, copy and slot carry the same cause on.
    """

    kind: CauseKind = ""
    step: int = -1
    layer: int = -1


NO_CAUSE = Cause()
"""Stands in messages that were recorded before causes existed."""


class Sampling(msgspec.Struct, frozen=True):
    """Options that shape the tokens of one request; the defaults leave the model's own distribution.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 do not restrict.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first_token: int | None = None
    """Forced first token of the output: for a translator, the target language."""
    min_p: float = 0.0
    """Least probability of a token, relative to the likeliest."""
    repetition_penalty: float | None = None
    """Factor over tokens of prompt and output; None: the model's own (`GenerationSettings.repetition_penalty`)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time that it is in the output."""
    logit_bias: dict[int, float] = {}
    """Token id -> number added to its logit."""
    min_new_tokens: int | None = None
    """Output tokens before which nothing ends the output; None: the model's own (`GenerationSettings`)."""
    grammar: str = ""
    """Grammar that the output's text follows (workers/grammars); empty: none."""


class Details(msgspec.Struct, frozen=True, omit_defaults=True):
    """Details that a request asks for besides its tokens; see `TokenLogprob` and `RoutedExperts`."""

    logprobs: int | None = None
    """Number of likeliest tokens that stand beside each output token; None: no logprobs."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    routed_experts: bool = False
    """Give the experts that each token was routed to."""

    @property
    def of_prompt(self) -> bool:
        """Return whether something is asked about the prompt: then every position of it must be computed."""
        return self.prompt_logprobs is not None or self.routed_experts


NO_DETAILS = Details()


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability of one token in the model's distribution, before settings, penalties and temperature."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary; tokens that are equally likely share the best rank."""
    top: list[tuple[int, float]] = []
    """Ids and log-probabilities of the likeliest tokens, the likeliest first, equals by their ids."""


class RoutedExperts(msgspec.Struct, frozen=True, kw_only=True):
    """Experts of each computed token: integers [positions, MoE layers, top_k] in row-major order, little-endian.

    The last token of an output is never fed back, so it has no position. A layer that takes fewer experts than others
    repeats its first.
    """

    shape: tuple[int, int, int]
    dtype: Literal["uint8", "uint16"]
    data: bytes


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings that change the logits of a request before a token is chosen, under transformers' own names.

    Each is a pure function of the prompt and the tokens so far (workers/model/processors.py). A model's settings come
    from its generation_config.json; a request's have `eos_ids` and `max_new_tokens` filled in. The default is neutral.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    """Tokens, the prompt included (with an encoder: the decoder's first token included)."""
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    renormalize_logits: bool = False
    eos_ids: tuple[int, ...] = ()
    """Ids that end the request, its own `stop_ids` among them."""
    max_new_tokens: int = 0
    """Limit of the request; 0 in a model's settings, which have none."""


NEUTRAL = GenerationSettings()
"""Settings that change no logit."""


class RequestRow(msgspec.Struct, frozen=True):
    """One sequence sent to compute: its number, all its ids so far, and how many of them were generated.

    `sampling` and the generation settings shape its tokens; `attachment` names the file with its images, if any
    (ipc/shared/attachments.py); `details` is what is asked besides its tokens.
    """

    number: int
    token_ids: list[int]
    generated: int
    sampling: Sampling
    attachment: str = ""
    settings: GenerationSettings = NEUTRAL
    details: Details = NO_DETAILS
    chunk: int = 0
    """Most positions of it that one step prefills, if it is prefilled alone; 0: all."""
    cached: int = 0
    blocks: list[int] = []
    """Its first `cached` positions are copied from these blocks (`KeepPrefix`), in their order."""


class ErrorFacts(msgspec.Struct, frozen=True):
    """A typed error on the wire."""

    code: str
    what: str
    where: str = ""
    remedy: str = ""

    @staticmethod
    def of(error: ExpertFlowError) -> ErrorFacts:
        """Return the facts of `error`."""
        return ErrorFacts(error.code, error.what, error.where, error.remedy)

    def to_error(self) -> ExpertFlowError:
        """Rebuild the typed error; an unknown code gives the base class."""
        return error_from_code(self.code, self.what, self.where, self.remedy)
