"""From the vocabulary of a GGUF file to tokenizer.json, tokenizer_config.json and a chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

from ....errors import CheckpointError
from ...checkpoint.gguf.container import Container
from .configuration import TOKENS

_ORIGINAL = "Use the original model's folder in safetensors format"


def write_tokenizer(folder: Path, first: Container) -> None:
    """Write the tokenizer's files and the chat template; none for a model without a vocabulary.

    Raises CheckpointError for a vocabulary of a kind that transformers does not build.
    """
    if TOKENS not in first.metadata:
        return
    try:
        architecture, stated, settings = get_gguf_tokenizer(str(first.path))
        backend, more = convert_gguf_tokenizer(architecture, stated)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings, **more)
        tokenizer.save_pretrained(folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - where merges do not fit, `tokenizers` panics: that is no Exception
        what = f"has a vocabulary that transformers cannot read ({error})"
        raise CheckpointError(what, str(first.path), _ORIGINAL) from error
