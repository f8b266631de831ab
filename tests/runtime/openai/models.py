"""A model folder with a tokenizer of bytes and a chat template, and completions as an engine gives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expertflow.ipc.messages import Timings, Welcome
from expertflow.runtime.client.completions import Completion, Event
from expertflow.runtime.client.options import Prompt
from expertflow.runtime.openai.model import ServedModel
from expertflow.runtime.text.codec import TextCodec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS = 256
VOCABULARY = 257
CONTEXT = 400
NAME = "tiny"
HERMES = (Path(__file__).parents[2] / "data" / "chat_templates" / "hermes.jinja").read_text()
PLAIN = """{%- if documents %}{{ documents[0].text }}\n{% endif -%}
{%- for message in messages -%}
{{ message.role }}: {{ message.content }}\n{% endfor -%}
{%- if effort is defined %}({{ effort }}) {% endif -%}
{%- if reasoning_effort is defined %}({{ reasoning_effort }}) {% endif -%}
{%- if add_generation_prompt %}assistant: {% endif -%}"""


def save_model(folder: Path, template: str | None = PLAIN) -> Path:
    """A tokenizer whose ids are bytes in the order of their letters, with `<s>` (256) before texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make_model(folder: Path, **options: Any) -> ServedModel:
    """The model as a server has it."""
    facts = Welcome(model=str(folder), vocabulary=VOCABULARY, context=CONTEXT, eos_ids=[BOS], queue_limit=100)
    return ServedModel((NAME, "alias"), facts, TextCodec(str(folder)), **options)


def complete(model: ServedModel, prompt: Prompt, text: str, reason: str = "length", **more: Any) -> Completion:
    """A completion of a prompt with this text."""
    assert isinstance(prompt, list)
    timings = Timings(queued_ns=0, first_token_ns=1, total_ns=2)
    ids = model.codec.encode(text, False)
    return Completion(ids, text, reason, timings, "id", list(prompt), **more)


def events_of(completion: Completion, model: ServedModel, index: int = 0, size: int = 1) -> list[Event]:
    """The events of a completion that comes in pieces of `size` tokens."""
    ids = completion.token_ids
    places = range(0, max(1, len(ids)), size)
    return [
        Event(
            index,
            ids[place : place + size],
            model.codec.decode(ids[place : place + size]),
            completion.finish_reason if place == places[-1] else None,
        )
        for place in places
    ]


def read_sse(chunks: Sequence[bytes]) -> list[Any]:
    """The data of server-sent events, comments left out; `[DONE]` as a text."""
    blocks = b"".join(chunks).decode().split("\n\n")
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    return [text if text == "[DONE]" else json.loads(text) for text in data]
