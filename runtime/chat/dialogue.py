"""The history of a conversation, and the commands that change it. No terminal, no engine."""

from __future__ import annotations

from typing import Any

HELP = """\
/system TEXT  set the system message, and begin anew
/clear        begin anew
/undo         forget the last question and its answer
/retry        answer the last question again
/history      show the conversation
/help         show this
/exit         end; so does Ctrl-D. Ctrl-C stops an answer
"""


class Dialogue:
    """Messages of a conversation. A question whose answer failed is forgotten by `undo`."""

    def __init__(self, system: str = "") -> None:
        self._system = system
        self._turns: list[dict[str, Any]] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the messages for the chat template."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns]

    def ask(self, text: str) -> None:
        """Append a question of the user."""
        self._turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Append the model's answer."""
        self._turns.append({"role": "assistant", "content": text})

    def set_system(self, text: str) -> None:
        """Begin anew with this system message; empty: none."""
        self._system = text
        self._turns.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._turns.clear()

    def undo(self) -> str:
        """Forget the last question, with its answer if there is one; return the question, empty if there is none."""
        while self._turns:
            turn = self._turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return ""

    def show(self) -> str:
        """Return the conversation as text."""
        return "".join(f"{message['role']}: {message['content']}\n" for message in self.messages)
