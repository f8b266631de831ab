"""Chat templates: what a conversation becomes is what transformers' `apply_chat_template` makes of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from expertflow.errors import RequestError, UsageError
from expertflow.runtime.text.chat import ChatTemplates, has_chat_template
from expertflow.runtime.text.chat_process import TemplateProcess
from expertflow.runtime.text.chat_render_job import RenderJob
from expertflow.runtime.text.codec import TextCodec
from expertflow.runtime.text.conversation import Conversation, read_conversation
from expertflow.tests.runtime.test_added_tokens import DECODER, save_tokenizer
from transformers import AutoTokenizer

TEMPLATES = sorted((Path(__file__).parents[2] / "data" / "chat_templates").glob("*.jinja"))
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

Message = dict[str, Any]
USER: Message = {"role": "user", "content": TEXT}
CALL: Message = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "find", "arguments": {"who": "Ada é"}}}
TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": None, "reasoning": "A tool?", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"born": 1815}', "tool_call_id": "a1b2c3d4e"},
    {"role": "assistant", "content": "In 1815. ", "reasoning_content": "\nIt says so.\n"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds",
        "parameters": {"type": "object", "properties": {"who": {"type": "string"}}},
    },
}
CASES: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "one": ([USER], {}),
    "system": (TURNS[:2], {}),
    "turns": ([*TURNS, USER], {}),
    "tools": ([*TURNS, USER], {"tools": [TOOL]}),
    "documents": ([USER], {"documents": [{"title": "A", "text": "b"}]}),
    "variables": (
        [USER],
        {"enable_thinking": False, "thinking": True, "reasoning_effort": "high", "date_string": "now"},
    ),
    "no prompt": ([*TURNS, USER], {"add_generation_prompt": False}),
    "continued": (TURNS, {"continue_final_message": True}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path, DECODER)
    return tmp_path


@pytest.fixture
def templates(folder: Path) -> Iterator[ChatTemplates]:
    made = ChatTemplates(folder)
    yield made
    made.close()


def state(folder: Path, template: object) -> None:
    """Put a template into tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def read(messages: list[Message], options: dict[str, Any]) -> Conversation:
    """Return our form of what transformers takes: other variables of the template are options of theirs."""
    known = {name: options[name] for name in options if name in Conversation.__dataclass_fields__}
    others = {name: value for name, value in options.items() if name not in known}
    return read_conversation(messages, **known, chat_template_kwargs=others)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.stem)
def test_conversations_are_rendered_as_transformers_renders_them(
    template: Path, folder: Path, templates: ChatTemplates
) -> None:
    """Families of templates, with all that goes into one; what one refuses the other does, too."""
    state(folder, template.read_text())
    theirs, compared = AutoTokenizer.from_pretrained(folder), 0
    for name, (messages, options) in CASES.items():
        prompt = {"add_generation_prompt": "continue_final_message" not in options}
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, **prompt | options)
        except Exception as refused:  # noqa: BLE001 - whatever it is
            with pytest.raises(UsageError, match="cannot render"):
                templates.render(read(messages, options))
            assert name in ("turns", "tools", "no prompt", "continued"), refused
            continue
        assert templates.render(read(messages, options)) == expected, name
        compared += 1
    assert compared >= 4


NAMED = [
    {"name": "rag", "template": "x"},
    {"name": "tool_use", "template": ODD},
    {"name": "default", "template": CHATML},
]


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize("template", [CHATML, ODD, NAMED], ids=["chatml", "odd", "named"])
def test_ids_are_those_of_transformers(template: object, tools: list[Any] | None, folder: Path) -> None:
    """Of a text with special tokens in it, too, and without any that the template does not write."""
    state(folder, template)
    theirs, codec = AutoTokenizer.from_pretrained(folder), TextCodec(str(folder))
    ids = theirs.apply_chat_template([USER], tools=tools, add_generation_prompt=True)["input_ids"]
    assert codec.encode_chat(read_conversation(TEXT, tools=tools)) == ids
    codec.close()


def test_a_file_of_its_own_goes_before_the_configuration(folder: Path, templates: ChatTemplates) -> None:
    """As it does in transformers."""
    state(folder, "old")
    (folder / "chat_template.jinja").write_text("new {{ messages[0].content }}")
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template([USER], tokenize=False)
    assert templates.render(read_conversation([USER])) == theirs == f"new {TEXT}"


def test_a_model_without_a_template(folder: Path, templates: ChatTemplates) -> None:
    """The remedy must be said, and a plain folder must not be taken for a chat model."""
    assert not has_chat_template(folder)
    with pytest.raises(UsageError, match="no chat template") as refused:
        templates.render(read_conversation(TEXT))
    assert "--chat" in refused.value.remedy
    state(folder, [{"name": "rag", "template": "x"}])
    with pytest.raises(UsageError, match="but rag"):
        ChatTemplates(folder).render(read_conversation(TEXT))


def test_parts_of_text_are_joined_unless_the_template_reads_parts(folder: Path, templates: ChatTemplates) -> None:
    """Clients send a lone text as a list of one part; most templates would print the list."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    for template, expected in ((CHATML, "user\na\nb<|im_end|>"), (TEMPLATES[-1].read_text(), "user\nab<|im_end|>")):
        state(folder, template)
        assert expected in render_once(folder, read_conversation(parts))


def render_once(folder: Path, conversation: Conversation) -> str:
    made = ChatTemplates(folder)
    try:
        return made.render(conversation)
    finally:
        made.close()


BAD = {
    "broken": "{% if %}",
    "refusing": "{{ raise_exception('only tools') }}",
    "undefined": "{{ messages[0].content.x.y }}",
    "escaping": "{{ messages.__class__.__base__.__subclasses__() }}",
    "changing": "{{ messages.append(1) }}",
    "private": "{% set x = namespace(_y=1) %}",
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "large": "{{ 'x' * 10 ** 10 }}",
}


@pytest.mark.parametrize("template", BAD)
def test_a_template_that_fails_is_a_typed_error(template: str, folder: Path, templates: ChatTemplates) -> None:
    """Templates are code of strangers: they reach nothing outside of the sandbox."""
    state(folder, BAD[template])
    with pytest.raises(UsageError, match="cannot render"):
        templates.render(read_conversation(TEXT))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
IN_C = "{{ (10 ** (10 ** 9)) | string | length }}"


@pytest.mark.parametrize("template", [ENDLESS, IN_C], ids=["loops", "one operation"])
def test_a_template_that_does_not_end_is_ended(template: str) -> None:
    """In the middle of one operation, too; and the next conversation is rendered."""
    process = TemplateProcess(cpu_s=0.2)
    with pytest.raises(UsageError, match=r"more than 0.2 s|cannot render"):
        process.render(RenderJob(template=template, messages=[USER]), "here")
    assert process.render(RenderJob(template="{{ messages[0].role }}", messages=[USER]), "here") == "user"
    process.close()


def test_the_process_that_renders_can_be_killed(folder: Path) -> None:
    """Between two conversations: the next one starts another; and it ends with its client."""
    process = TemplateProcess()
    job = RenderJob(template="{{ messages[0].role }}", messages=[USER])
    for _ in range(2):
        assert process.render(job, "here") == "user"
        (worker,) = [child for child in psutil.Process().children() if "chat_worker" in " ".join(child.cmdline())]
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # when its threads have ended, too
    process.close()


HTTP = {"type": "image_url", "image_url": {"url": "http://x"}}
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "empty": ([], {}, "messages is empty|is empty"),
    "text": ([["hi"]], {}, "role"),
    "no role": ([{"content": "x"}], {}, "role"),
    "object": ({"role": "user"}, {}, "must be a list"),
    "bytes": ([{"role": "user", "content": "x", "extra": b"x"}], {}, "bytes, which is no JSON"),
    "part": ([{"role": "user", "content": [{"type": "audio"}]}], {}, "audio"),
    "address": ([{"role": "user", "content": [HTTP]}], {}, "data URL"),
    "file": ([{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}], {}, "data URL"),
    "base64": ([{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,?"}]}], {}, "base64"),
    "surrogate": ([{"role": "user", "content": "\ud800"}], {}, "UTF-8"),
    "both": ([USER], {"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    "reserved": ([USER], {"chat_template_kwargs": {"tools": []}}, "option of its own"),
    "tools": ([USER], {"tools": ["find"]}, "list of objects"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_conversation_is_refused(case: str) -> None:
    messages, options, words = WRONG[case]
    with pytest.raises(RequestError, match=words):
        read_conversation(messages, **options)


def test_a_deeply_nested_value_is_refused() -> None:
    """A body of 10 MB may be nothing but brackets."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="too deeply"):
        read_conversation([{"role": "user", "content": "x", "extra": deep}])


def test_arguments_of_tool_calls_become_objects() -> None:
    """Clients send the text of the answer back; templates want the object. What is no object stays a text."""
    texts = ('{"a": 1}', "[1]", "{")
    calls = [{"function": {"name": "f", "arguments": text}} for text in texts]
    read = read_conversation([{"role": "assistant", "tool_calls": calls}])
    assert [call["function"]["arguments"] for call in read.messages[0]["tool_calls"]] == [{"a": 1}, "[1]", "{"]


def test_images_of_parts_come_in_order() -> None:
    """A template must not get megabytes of base64."""
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
        {"type": "text", "text": "and"},
        {"type": "image", "image": Path("b.png")},
    ]
    read = read_conversation([{"role": "user", "content": content}])
    assert read.images == [b"A", Path("b.png")]
    assert read.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
