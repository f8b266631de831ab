"""Trace how the built-in model routes its own text: what its predictor (`model/predictor.npz`) is trained on.

    python examples/trace_text.py --packages DIR --destination TRACES
    expertflow train TRACES/train.npz --held-out 0 --test TRACES/held_out.npz --minutes 15 \
        --out examples/model/predictor.npz

`DIR` is "/" when the Debian packages named in `corpus.py` are installed, or the folder they were unpacked into. The
first trace is of the text that the model was trained on, the other of `held_out.txt`, both in windows of 512 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from corpus import join_documents, load_documents, split_documents
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.trace import Trace, write_npz
from model_folder import encode
from rich.console import Console
from routing_report import WINDOW_TOKENS, read_ids, read_text
from train_model import HERE
from train_model import Options as ModelOptions
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

console = Console()


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    destination: Path
    """Folder to write train.npz and held_out.npz into."""
    packages: Path = Path("/")
    """Folder below which the Debian packages' files lie."""
    model: Path = HERE / "model"
    tokens: int = 0
    """Trace only so many tokens of the training text; 0: all."""


def trace_text(folder: Path, text: str, tokens: int = 0) -> Trace:
    """Run the text through the model in float32, in windows; every window is a sequence."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = encode(tokenizer, text)
    ids = ids[:tokens] if tokens else ids
    chosen = read_text(model, ids).chosen.permute(1, 0, 2).numpy().astype(np.uint16)
    return Trace(
        routes=chosen,
        token_ids=read_ids(ids).numpy().astype(np.int64),
        offsets=np.arange(0, len(chosen) + 1, WINDOW_TOKENS),
        expert_count=model.config.num_experts,
        model=survey_checkpoint(str(folder)).fingerprint,
    )


def main(options: Options) -> None:
    """Write both traces."""
    model = ModelOptions()
    split = split_documents(load_documents(options.packages), model.held_out_share, model.seed)
    options.destination.mkdir(parents=True, exist_ok=True)
    texts = {"held_out": (model.held_out_text.read_text(), 0), "train": (join_documents(split.train), options.tokens)}
    for name, (text, tokens) in texts.items():
        trace = trace_text(options.model, text, tokens)
        write_npz(trace, options.destination / f"{name}.npz")
        console.log(f"{name}: {trace.tokens:,} tokens in {trace.sequences:,} sequences")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
