"""Questions in, answers out: the loop of `expertflow chat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import EngineError, ExpertFlowError
from ..client import Batch, Client
from ..client.options import OptionNames
from .dialogue import HELP, Dialogue
from .terminal import StopKey, Terminal

POLL_S = 0.1
"""Time after which Ctrl-C is noticed while no token comes."""
UNKNOWN = "{}: no such command; /help shows all\n"


class ChatLoop:
    """One conversation with a model."""

    def __init__(
        self,
        client: Client,
        terminal: Terminal,
        dialogue: Dialogue,
        max_new_tokens: int,
        options: OptionNames,
        values: dict[str, Any],
    ) -> None:
        """Take the options of requests, and `values`: other variables of the chat template."""
        self._client, self._terminal, self._dialogue = client, terminal, dialogue
        self._max_new_tokens, self._options, self._values = max_new_tokens, options, values

    def run(self, report: Callable[[ExpertFlowError], None]) -> None:
        """Answer until the input ends. Errors of single answers go to `report`.

        Raises EngineError if the engine has ended.
        """
        while (line := self._terminal.read()) is not None and line != "/exit":
            question = self._obey(line) if line.startswith("/") else line
            if question:
                self._answer(question, report)

    def _obey(self, line: str) -> str:
        """Carry out a command; return the question to answer, if there is one."""
        name, _, rest = line.partition(" ")
        match name:
            case "/retry":
                return self._dialogue.undo()
            case "/system":
                self._dialogue.set_system(rest.strip())
            case "/clear":
                self._dialogue.clear()
            case "/undo":
                self._dialogue.undo()
            case "/history":
                self._terminal.tell(self._dialogue.show())
            case "/help":
                self._terminal.tell(HELP)
            case _:
                self._terminal.tell(UNKNOWN.format(name))
        return ""

    def _answer(self, question: str, report: Callable[[ExpertFlowError], None]) -> None:
        self._dialogue.ask(question)
        try:
            self._dialogue.answer(self._stream())
        except EngineError:
            raise
        except ExpertFlowError as error:
            self._dialogue.undo()
            report(error)

    def _stream(self) -> str:
        """Show the answer as it comes and return its content. Raises the request's error."""
        prompt = self._client.chat_ids(self._dialogue.messages, chat_template_kwargs=self._values)
        parser = self._client.answer_parser(prompt)
        content = ""
        with self._client.submit([prompt], self._max_new_tokens, **self._options) as batch, StopKey() as key:
            while not self._is_over(batch):
                if key.pressed:
                    batch.cancel()
                batch.wait_for_updates(POLL_S)
                for event in batch.received():
                    parts = parser.feed(event.text_delta)
                    content += parts.content
                    self._terminal.write(parts.content, parts.reasoning)
        rest = parser.finish()
        content += rest.content
        self._terminal.write(rest.content, rest.reasoning)
        results = batch.results(0, return_errors=True)
        if content or not isinstance(results[0], ExpertFlowError):
            self._terminal.write("\n")
        if isinstance(results[0], ExpertFlowError):
            raise results[0]
        if key.pressed:
            self._terminal.tell("(stopped)\n")
        return content

    def _is_over(self, batch: Batch) -> bool:
        return batch.done and not batch.has_updates
