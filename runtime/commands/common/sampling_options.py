"""Options of commands that generate text: how tokens are chosen, where an output ends, what form it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ....errors import UsageError
from ...client.options import OptionNames
from ...command_line.base import Command
from ...text.structured import Structured

TextList = Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="TEXT")]


@dataclass(frozen=True, kw_only=True)
class SamplingCommand(Command):
    """A command that generates text."""

    option_groups: ClassVar = {
        "Sampling": (
            "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty",
            "presence_penalty", "frequency_penalty", "min_new_tokens", "stop", "include_stop", "ignore_eos",
            "deadline_s", "first_token",
        ),
        "Structured": ("json_schema", "regex", "choice", "grammar"),
    }  # fmt: skip
    max_new_tokens: int = 64
    """End after so many tokens, if the model does not end before."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more random."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1: all."""
    min_p: float = 0.0
    """Sample among tokens that have this share of the likeliest token's probability; 0: all."""
    seed: int | None = None
    """Seed of sampling; output i uses seed + i. Without it a seed is drawn."""
    repetition_penalty: float | None = None
    """Make tokens of prompt and output less likely by this factor; 1: not. Without it the model's own setting."""
    presence_penalty: float = 0.0
    """Subtract this from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """Subtract this from the logit of a token for every time that it is in the output."""
    min_new_tokens: int | None = None
    """Do not end before so many tokens."""
    stop: TextList = field(default_factory=list)
    """End before this text; repeat the option for more."""
    include_stop: bool = False
    """Keep the text that ends the output at its end."""
    ignore_eos: bool = False
    """Do not end at the model's end-of-sequence token."""
    deadline_s: float | None = None
    """End after so many seconds with the tokens so far."""
    first_token: int | None = None
    """Outputs begin with this token id: the target language of a translator such as NLLB-MoE."""
    json_schema: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Outputs are JSON that follows the schema in this file (needs the extra `structured`, as the next three do)."""
    regex: str | None = None
    """Outputs match this regular expression as a whole."""
    choice: TextList = field(default_factory=list)
    """Outputs are one of these texts; repeat the option for each."""
    grammar: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Outputs follow the grammar in this file, in llguidance's dialect of Lark."""

    def sampling(self) -> OptionNames:
        """Return the options of requests. Raises UsageError for a file that cannot be read."""
        options: OptionNames = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": self.seed,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "min_new_tokens": self.min_new_tokens,
            "stop": self.stop,
            "include_stop": self.include_stop,
            "deadline_s": self.deadline_s,
            "first_token": self.first_token,
            "structured": self._structured(),
        }
        return options | {"eos_ids": []} if self.ignore_eos else options

    def _structured(self) -> Structured | None:
        given = Structured(
            json_schema=_read(self.json_schema, "--json-schema"),
            regex=self.regex,
            choice=self.choice or None,
            grammar=_read(self.grammar, "--grammar"),
        )
        return None if given == Structured() else given


def _read(file: Path | None, option: str) -> str | None:
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", f"{option} {file}", "Name a text file") from error
