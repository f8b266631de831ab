"""`expertflow trace`: records which experts a model uses, for `replay` and `train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import tyro
from msgspec import Meta

from ...configs.schema import Config
from ...configs.sizes import format_size
from ...errors import EngineError, UsageError
from ...workers.traces.folder import claim_folder, trace_files
from ...workers.traces.reading import read_trace
from ...workers.traces.trace import Trace as Routing
from ...workers.traces.trace import write_npz
from ..client import Client, Completion
from ..command_line.base import DONE
from ..engine.preflight import require_device
from ..engine.starting import running_engine
from ..monitor.request_progress import show_batch
from ..monitor.tables import facts_table, result_console, share_text
from ..prompt_sources.prompt_lines import PromptLine, cut_texts, read_prompt_lines, read_texts, refuse_impossible
from ..text.codec import TextCodec
from .common.printing import report_failure
from .common.prompt_commands import PromptCommand


@dataclass(frozen=True, kw_only=True)
class Trace(PromptCommand):
    """Run prompts and record which experts every token uses, with the predictions and hints.

    Without prompts, FOLDER is an existing trace: its size is printed, and --npz converts it.
    """

    option_groups: ClassVar = {
        "Prompt": ("text", "text_tokens"),
        "Sampling": ("max_new_tokens",),
        "Recording": ("hidden", "npz"),
    }
    folder: tyro.conf.Positional[Path]
    """Folder for the trace."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A long UTF-8 text (or, by --format, the texts of records) instead of prompts. It is cut into pieces, and the
    model only reads each (prefill), which is quick."""
    text_tokens: Annotated[int, Meta(ge=1)] = 256
    """Tokens of each piece of a text."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 64
    """Tokens for each prompt."""
    hidden: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the tokens, 0 to 1, whose hidden states are recorded as well (gates are trained on them)."""
    npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the routing to this .npz file as well."""

    def run(self) -> int:
        self._check_options()
        exit_code = DONE
        if self._has_prompts:
            exit_code = self._record()
        trace = read_trace(self.folder)
        if self.npz:
            _write(trace, self.npz)
        result_console().print(facts_table(trace_facts(trace, self.folder)))
        return exit_code

    @property
    def _has_prompts(self) -> bool:
        return bool(self.prompt or self.prompts or self.text)

    def _check_options(self) -> None:
        """Check the options before an engine starts for nothing. Raises UsageError."""
        if self.text and (self.prompt or self.prompts):
            raise UsageError("both prompts and a text are given", "--text", "Give one of them")
        if self.text and self.ids:
            raise UsageError("is for prompts, not for a text", "ids", "Give the ids with --prompts FILE")
        if self.engine.trace:
            raise UsageError("the folder is named twice", "trace", "Leave out --trace; FOLDER is enough")
        if self.npz and not (self.npz.suffix == ".npz" and self.npz.parent.is_dir()):
            raise UsageError("is no .npz file in a folder that exists", str(self.npz), "Write for example trace.npz")
        if not self._has_prompts and not self.folder.is_dir():
            what = "no prompt is given, and no trace is there"
            raise UsageError(what, str(self.folder), 'Give --prompts FILE, --prompt "TEXT" or --text FILE')

    def _record(self) -> int:
        """Run the prompts with tracing; return the exit code."""
        lines = [] if self.text else read_prompt_lines(self.prompt, self.prompts, self.ids, self.format)
        texts = read_texts(self.text, self.format) if self.text else []
        config = self._tracing_config()
        require_device(config)
        refuse_impossible(lines, config.model)
        claim_folder(str(self.folder))
        with running_engine(config) as engine, Client(engine.address) as client:
            if self.text:
                self._check_pieces(client.model.context)
                lines = cut_texts(texts, TextCodec(client.model.model), self.text_tokens)
            exit_code, tokens = _run_all(client, lines, 1 if self.text else self.max_new_tokens)
        if tokens and (recorded := read_trace(self.folder).tokens) < tokens:
            what = f"holds {recorded:,} of the {tokens:,} tokens that ran"
            raise EngineError(what, str(self.folder), "Make room on the disk, and trace again")
        return exit_code

    def _check_pieces(self, context: int) -> None:
        if self.text_tokens > context:
            what = f"pieces of {self.text_tokens} tokens are longer than the model's context of {context}"
            raise UsageError(what, "text_tokens", f"Give at most {context}")

    def _tracing_config(self) -> Config:
        share = self.hidden or self.engine.trace_hidden
        return msgspec.structs.replace(self.engine, trace=str(self.folder), trace_hidden=share)


def _run_all(client: Client, lines: list[PromptLine], max_new_tokens: int) -> tuple[int, int]:
    """Return the exit code, and the number of tokens that ran for the prompts that are done."""
    batch = client.submit([line.prompt for line in lines], max_new_tokens)
    show_batch(client, batch, "trace")
    results = batch.results(return_errors=True)
    done = [result for result in results if isinstance(result, Completion)]
    pairs = zip(lines, results, strict=True)
    errors = [(line, result) for line, result in pairs if not isinstance(result, Completion)]
    exit_code = max([report_failure(line, error) for line, error in errors], default=DONE)
    return exit_code, sum(len(result.prompt_ids) + len(result.token_ids) - 1 for result in done)


def _write(trace: Routing, file: Path) -> None:
    try:
        write_npz(trace, file)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Give another file for --npz") from error


def trace_facts(trace: Routing, folder: Path) -> dict[str, str]:
    """Return the sizes of a trace in `folder` for a table, label -> text."""
    size_bytes = sum(file.stat().st_size for file in trace_files(folder, "*"))
    experts = f"{trace.top_k} of {trace.expert_count} in each of {trace.layers} MoE layers"
    decoded = 0.0 if trace.decoded is None else float(trace.decoded.mean())
    return {
        "trace": f"{folder} ({format_size(size_bytes)})",
        "sequences": f"{trace.sequences:,}",
        "tokens": f"{trace.tokens:,}, {share_text(decoded)} in decode steps",
        "experts": experts + (f", {trace.encoder_layers} of them the encoder's" if trace.encoder_layers else ""),
        "model": trace.model,
    }
