"""Prompts from the command line and from files, each with the place it came from (for errors)."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from ...configs.checks import is_text
from ...errors import ExpertFlowError, UsageError
from ..client.images import ImagePrompt
from ..client.options import Prompt
from ..engine.preflight import impossible_prompts
from ..text.codec import TextCodec
from .workloads import Format, record_prompts

STDIN = Path("-")
PATIENCE_S = 2.0
"""Seconds without a prompt on stdin after which a command says that it waits for one."""


class PromptLine(NamedTuple):
    """A prompt and the place it came from (`where`, for error messages)."""

    prompt: Prompt
    where: str

    def located(self, error: ExpertFlowError) -> ExpertFlowError:
        """Return the prompt's error with the place that the prompt came from."""
        if self.where in error.where:
            return error
        what = error.what if error.where == "prompt" else error.sentence
        return type(error)(what, self.where, error.remedy)


def refuse_impossible(lines: list[PromptLine], model: str) -> None:
    """Raise the first prompt's error if none can run on this model, before an engine starts for nothing."""
    if errors := impossible_prompts([line.prompt for line in lines], model):
        raise lines[0].located(errors[0])


def read_prompt_lines(texts: list[str], file: Path | None, ids: bool, form: Format = "lines") -> list[PromptLine]:
    """Return the prompts of `--prompt` or of a file (`-`: stdin) in the format `form`.

    Raises UsageError that names the line that cannot be used.
    """
    if bool(texts) == (file is not None):
        problem = "both --prompt and --prompts are given" if texts else "no prompt is given"
        raise UsageError(problem, "", 'Give --prompt "TEXT" (once or more), or --prompts FILE (- reads stdin)')
    if form != "lines":
        if file is None or ids:
            problem = "is for a file with records, not for --ids" if ids else "is for a file, and none is given"
            raise UsageError(problem, "format", f"Give --prompts FILE --format {form}")
        return [PromptLine(*record) for record in _records(file, form)]
    named = _lines_of(file) if file else [(text, f"--prompt {number}") for number, text in enumerate(texts, 1)]
    return [PromptLine(_read_ids(text, where) if ids else _check_text(text, where), where) for text, where in named]


def stdin_is_piped() -> bool:
    """Return whether stdin is a pipe or a file: someone has sent prompts there, or is about to."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def with_images(lines: list[PromptLine], images: list[Path]) -> list[PromptLine]:
    """Return the only prompt with these images; without images all prompts unchanged.

    Raises UsageError for images with several prompts or ids, and for a missing file.
    """
    if not images:
        return lines
    if len(lines) != 1 or not isinstance(lines[0].prompt, str):
        raise UsageError("images belong to a single prompt of text", "--image", 'Give one --prompt "TEXT" with them')
    if missing := next((image for image in images if not image.is_file()), None):
        raise UsageError("no such file", f"--image {missing}", "Name an image file, for example a PNG or JPEG")
    return [PromptLine(ImagePrompt(lines[0].prompt, [str(image) for image in images]), lines[0].where)]


class TextLine(NamedTuple):
    """A text to cut into pieces, and the place it came from (`where`, for error messages)."""

    text: str
    where: str


def read_texts(file: Path, form: Format = "lines") -> list[TextLine]:
    """Return a file's whole text, or the texts of its records. Raises UsageError if it cannot be read, or is empty."""
    if form != "lines":
        return _records(file, form)
    name = _name_of(file)
    return [TextLine(_check_text(_decode(_read_bytes(file), name), name), name)]


def cut_texts(texts: list[TextLine], codec: TextCodec, piece_tokens: int) -> list[PromptLine]:
    """Return prompts of `piece_tokens` ids each; the last one of a text may be shorter."""
    return [piece for text in texts for piece in _cut(text, codec.encode(text.text), piece_tokens)]


def _cut(text: TextLine, ids: list[int], piece_tokens: int) -> list[PromptLine]:
    starts = range(0, len(ids), piece_tokens)
    return [PromptLine(ids[start : start + piece_tokens], f"{text.where}, token {start + 1:,}") for start in starts]


def _records(file: Path, form: Format) -> list[TextLine]:
    return [TextLine(prompt, where) for prompt, where in record_prompts(_read_bytes(file), _name_of(file), form)]


def _lines_of(file: Path) -> list[tuple[str, str]]:
    name = _name_of(file)
    lines = _read_bytes(file).removesuffix(b"\n").split(b"\n")
    return [(_decode(line, f"{name}, line {number}"), f"{name}, line {number}") for number, line in enumerate(lines, 1)]


def _name_of(file: Path) -> str:
    return "stdin" if file == STDIN else str(file)


def _read_bytes(file: Path) -> bytes:
    """Return the content without a byte order mark. Raises UsageError if it cannot be read, or is empty."""
    content = _all_bytes(file).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise UsageError("is empty", _name_of(file), "Name a file with at least one prompt")
    return content


def _all_bytes(file: Path) -> bytes:
    try:
        return _stdin_bytes() if file == STDIN else file.read_bytes()
    except OSError as error:
        remedy = "Name a text file with a prompt a line"
        raise UsageError(f"cannot be read: {error.strerror}", _name_of(file), remedy) from error


def _stdin_bytes() -> bytes:
    if sys.stdin is None:
        raise UsageError("is closed", "stdin", "Send prompts to it, or name a file")
    if not _has_input():
        sys.stderr.write("reading prompts from stdin, one a line; Ctrl-D ends them\n")
    return sys.stdin.buffer.read()


def _has_input() -> bool:
    """Wait a little for something on stdin."""
    try:
        return bool(select.select([sys.stdin], [], [], PATIENCE_S)[0])
    except ValueError:  # no descriptor to wait for
        return True


def _decode(line: bytes, where: str) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.start + 1})"
        raise UsageError(what, where, "Save the file as UTF-8") from error


def _check_text(text: str, where: str) -> str:
    if not text.strip():
        raise UsageError("the prompt is empty", where, "Write at least a word, or remove the line")
    if not is_text(text):
        raise UsageError("is not UTF-8", where, "Write it in UTF-8, or give a file with --prompts")
    return text


def _read_ids(text: str, where: str) -> list[int]:
    words = [word for word in re.split(r"[\s,]+", text.strip("[] \t")) if word]
    if not words:
        raise UsageError("the prompt is empty", where, "Write at least one token id")
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise UsageError(f"is not a list of token ids: {text!r}", where, "Write for example: 5 9 11") from error
