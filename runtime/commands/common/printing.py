"""Output of `generate`: one streamed text, several texts in the order of the prompts, or lines of JSON."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ....errors import EngineError, ExpertFlowError
from ....ipc.messages import Progress, TokenLogprob
from ...client import Completion, Event
from ...command_line.base import DONE
from ...command_line.outcome import describe, exit_code
from ...monitor.progress import ProgressView
from ...prompt_sources.prompt_lines import PromptLine

Result = Completion | ExpertFlowError


class Printer(ABC):
    """Output of a batch: takes events as they come and the results at the end. Errors go to stderr."""

    def __init__(self, lines: list[PromptLine]) -> None:
        self.lines = lines
        self.tokens = 0
        self.exit_code = DONE
        self.engine_failed = False
        """Set if prompts have no result because the engine ended."""

    @abstractmethod
    def start(self) -> None:
        """Show on stderr that the prompts run, if nothing else will show it for a while."""

    def take(self, event: Event) -> None:
        """Show an event."""
        self.tokens += len(event.token_ids)
        self._show(event)

    @abstractmethod
    def show_progress(self, progress: Progress) -> None:
        """Show on stderr how far something is, before the first event."""

    def take_results(self, results: list[Result]) -> None:
        """Print the results, one for each prompt, after all requests have ended."""
        self._end()
        reported: set[str] = set()
        for line, result in zip(self.lines, results, strict=True):
            if not isinstance(result, ExpertFlowError):
                self._print(line, result)
            elif not isinstance(result, EngineError):
                self._fail(line, result)
            else:
                self._lose(line, result, is_new=str(result) not in reported)
                reported.add(str(result))

    @abstractmethod
    def close(self) -> None:
        """End the display of progress."""

    def summarise(self, summary: str) -> None:
        """Write the summary to stderr, behind all that was written to stdout."""
        sys.stdout.flush()
        sys.stderr.write(summary + "\n")

    @abstractmethod
    def _show(self, event: Event) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...

    @abstractmethod
    def _print(self, line: PromptLine, done: Completion) -> None: ...

    def _fail(self, line: PromptLine, error: ExpertFlowError) -> None:
        self.exit_code = max(self.exit_code, report_failure(line, error))

    def _lose(self, line: PromptLine, error: EngineError, is_new: bool) -> None:
        """Report that the engine ended: once, not for every prompt that was open."""
        self.engine_failed = True
        if is_new:
            sys.stderr.write(describe(error) + "\n")
        self.exit_code = max(self.exit_code, exit_code(error))


def report_failure(line: PromptLine, error: ExpertFlowError) -> int:
    """Say on stderr why a prompt has no result; return the exit code."""
    error = line.located(error)
    sys.stderr.write(describe(error) + "\n")
    return exit_code(error)


class _Stream(Printer):
    """One text, printed as it grows."""

    def __init__(self, lines: list[PromptLine]) -> None:
        super().__init__(lines)
        self._view: ProgressView | None = None

    def start(self) -> None:
        if not sys.stdout.isatty():  # nobody sees the text grow
            self.show_progress(Progress("generate", "one prompt", 0, 1))

    def show_progress(self, progress: Progress) -> None:
        self._view = self._view or ProgressView()
        self._view(progress)

    def _show(self, event: Event) -> None:
        if sys.stdout.isatty():
            self.close()
        sys.stdout.write(event.text_delta)
        sys.stdout.flush()

    def _end(self) -> None:
        self.close()
        sys.stdout.write("\n")

    def _print(self, line: PromptLine, done: Completion) -> None:
        """Do nothing: the text has been streamed."""

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None


class _List(Printer):
    """Several results, printed in the order of the prompts when all have ended; until then progress is shown."""

    def __init__(self, lines: list[PromptLine], as_json: bool, has_text: bool) -> None:
        super().__init__(lines)
        self._as_json, self._has_text = as_json, has_text
        self._ended = 0
        self._view = ProgressView()

    def start(self) -> None:
        self._show_ended()

    def show_progress(self, progress: Progress) -> None:
        self._view(progress)

    def _show(self, event: Event) -> None:
        self._ended += event.finish_reason is not None or event.error is not None
        self._show_ended()

    def _show_ended(self) -> None:
        count = len(self.lines)
        words = "one prompt" if count == 1 else f"{count:,} prompts"
        self._view(Progress("generate", words, self._ended, count))

    def _end(self) -> None:
        self._view.close()

    def _print(self, line: PromptLine, done: Completion) -> None:
        if self._as_json:
            sys.stdout.write(_as_json(line, done) + "\n")
        else:
            sys.stdout.write(f"[{line.where}] {done.text if self._has_text else _ids(done)}\n")

    def close(self) -> None:
        self._view.close()

    def _fail(self, line: PromptLine, error: ExpertFlowError) -> None:
        super()._fail(line, error)
        self._print_error(line, error)

    def _lose(self, line: PromptLine, error: EngineError, is_new: bool) -> None:
        super()._lose(line, error, is_new)
        self._print_error(line, error)

    def _print_error(self, line: PromptLine, error: ExpertFlowError) -> None:
        if self._as_json:  # every prompt has its line
            facts = {"code": error.code, "what": error.sentence, "to_do": error.remedy}
            sys.stdout.write(msgspec.json.encode({"prompt": line.prompt, "error": facts}).decode() + "\n")


def make_printer(lines: list[PromptLine], model_folder: str, as_json: bool) -> Printer:
    """Return the printer that suits the number of prompts; without a tokenizer ids stand for text."""
    has_text = Path(model_folder, "tokenizer.json").is_file()
    return _Stream(lines) if len(lines) == 1 and has_text and not as_json else _List(lines, as_json, has_text)


def _ids(done: Completion) -> str:
    return " ".join(map(str, done.token_ids))


def _as_json(line: PromptLine, done: Completion) -> str:
    facts = {
        "prompt": line.prompt,
        "text": done.text,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "prompt_tokens": len(done.prompt_ids),
        "timings": done.timings,
    }
    asked = {
        "stop_reason": done.stop_reason,
        "logprobs": _logprobs(done.logprobs),
        "prompt_logprobs": _logprobs(done.prompt_logprobs),
    }
    facts |= {name: value for name, value in asked.items() if value is not None}
    return msgspec.json.encode(facts).decode()


def _logprobs(entries: Sequence[TokenLogprob | None] | None) -> list[dict[str, Any] | None] | None:
    """Return entries as objects: messages have them as arrays."""
    if entries is None:
        return None
    return [None if entry is None else msgspec.structs.asdict(entry) for entry in entries]
