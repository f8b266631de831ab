"""`expertflow chat`: a conversation with a model on the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ...errors import ExpertFlowError, UsageError
from ...workers.checkpoint.resolve import local_folder
from ..chat.dialogue import Dialogue
from ..chat.loop import ChatLoop
from ..chat.terminal import Terminal
from ..client.options import read_options
from ..command_line.base import DONE, EngineCommand
from ..command_line.outcome import describe, exit_code
from ..text.chat import require_chat_template
from .common.engine_client import open_client, refuse_engine_options
from .common.sampling_options import SamplingCommand

WELCOME = "Type a question; /help shows commands, Ctrl-D ends.\n"


@dataclass(frozen=True, kw_only=True)
class Chat(SamplingCommand, EngineCommand):
    """Talk with a model that has a chat template: questions from the terminal or, a line each, from a pipe."""

    chooses_memory: ClassVar = True
    option_groups: ClassVar = {"Prompt": ("system", "template_values")}
    max_new_tokens: int = 512
    """End an answer after so many tokens, if the model does not end before."""
    system: str = ""
    """System message: what the model is to be or to do."""
    template_values: str = ""
    """JSON object with other variables of the chat template, such as {"enable_thinking": false}."""
    address: str = ""
    """Use the engine at this address; options of the engine but batch_invariant do not apply then."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of your keys, for an address over TCP (tcp://HOST:PORT); there --model may name a folder with the model's
    tokenizer."""

    def run(self) -> int:
        options = self.sampling()
        read_options(self.max_new_tokens, **options)
        values = _read_values(self.template_values)
        if self.address:
            refuse_engine_options(self.engine, self.preset, self.address)
            options["batch_invariant"] = self.engine.batch_invariant or None
        elif folder := local_folder(self.engine.model):
            require_chat_template(folder)
        codes, terminal = [DONE], Terminal()

        def report(error: ExpertFlowError) -> None:
            sys.stderr.write(describe(error) + "\n")
            codes.append(exit_code(error))

        with open_client(self.engine, self.address, self.keys) as client:
            if terminal.is_interactive:
                terminal.tell(WELCOME)
            dialogue = Dialogue(self.system)
            ChatLoop(client, terminal, dialogue, self.max_new_tokens, options, values).run(report)
        return DONE if terminal.is_interactive else max(codes)


def _read_values(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"is no JSON ({error})", "template_values", 'Give {"name": value}') from error
    if not isinstance(values, dict):
        raise UsageError("is no JSON object", "template_values", 'Give {"name": value}')
    return values
