"""Chat templates: what a text becomes is what transformers' `apply_chat_template` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.text.chat import has_chat_template, render_chat
from expertflow.runtime.text.codec import TextCodec
from expertflow.tests.runtime.test_added_tokens import DECODER, save_tokenizer
from transformers import AutoTokenizer

CHATML = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
ODD = """{%- set state = namespace(count=0, self=1) -%}{%- set state.count = messages | length -%}
{%- generation %}{{ dict(a=state.count) | tojson(indent=2) }} {{ messages | tojson }}{% endgeneration -%}
  {% if tools is none and documents is none %}
 no tools
  {% endif %}
{{ eos_token if eos_token is defined else 'no end' }}{{ '%H' | string }}{{ dict.fromkeys(['x']) }}"""
TEXT = ' Who <s> was "Ada" <Lovelace>? é🐒'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path, DECODER)
    return tmp_path


def state(folder: Path, template: object) -> None:
    """Put a template into tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


NAMED = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]


@pytest.mark.parametrize("template", [CHATML, ODD, NAMED], ids=["chatml", "odd", "named"])
def test_ids_are_those_of_transformers(template: object, folder: Path) -> None:
    """Of a text with special tokens in it, too, and without any that the template does not write."""
    state(folder, template)
    theirs = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": TEXT}]
    assert render_chat(folder, TEXT) == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert TextCodec(str(folder)).encode_chat(TEXT) == ids


def test_a_file_of_its_own_goes_before_the_configuration(folder: Path) -> None:
    """As it does in transformers."""
    state(folder, "old")
    (folder / "chat_template.jinja").write_text("new {{ messages[0].content }}")
    chat = [{"role": "user", "content": "x"}]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
    assert render_chat(folder, "x") == theirs == "new x"


def test_a_model_without_a_template(folder: Path) -> None:
    """The remedy must be said, and a plain folder must not be taken for a chat model."""
    assert not has_chat_template(folder)
    with pytest.raises(UsageError, match="no chat template") as refused:
        render_chat(folder, TEXT)
    assert "--chat" in refused.value.remedy
    state(folder, [{"name": "rag", "template": "x"}])
    with pytest.raises(UsageError, match="but rag"):
        render_chat(folder, TEXT)


BAD = {
    "broken": "{% if %}",
    "refusing": "{{ raise_exception('only tools') }}",
    "undefined": "{{ messages[0].content.x.y }}",
    "escaping": "{{ messages.__class__.__base__.__subclasses__() }}",
    "changing": "{{ messages.append(1) }}",
    "private": "{% set x = namespace(_y=1) %}",
}


@pytest.mark.parametrize("template", BAD)
def test_a_template_that_fails_is_a_typed_error(template: str, folder: Path) -> None:
    """Templates are code of strangers: they reach nothing outside of the sandbox."""
    state(folder, BAD[template])
    with pytest.raises(UsageError, match="cannot render"):
        render_chat(folder, TEXT)
