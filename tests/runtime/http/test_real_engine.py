"""`expertflow serve --http` with the built-in model, used by the official client and by the how-to page."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import expertflow
import httpx2
import numpy as np
import openai
import psutil
import pytest
from expertflow import Client
from expertflow.runtime.client.watching import Watcher
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.openai.models import PLAIN
from openai import AsyncOpenAI, OpenAI

ROOT = Path(expertflow.__file__).resolve().parent
PAGE = ROOT / "docs" / "how-to" / "serve-http.md"
PROMPT = "The history of"
HI: Any = [{"role": "user", "content": "Hello"}]
START_S = 60
EXACT = {"ignore_eos": True, "batch_invariant": True}
"""Rows do not depend on their neighbours, which a death changes (docs/exactness.md)."""


@dataclass(frozen=True)
class Served:
    """A running `expertflow serve --http`."""

    process: subprocess.Popen[str]
    url: str
    address: str
    model: str

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, **options)


def copy_model(folder: Path) -> Path:
    """The built-in model with a chat template, which it does not have."""
    shutil.copytree(ROOT / "examples" / "model", folder)
    (folder / "chat_template.jinja").write_text(PLAIN)
    return folder


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, runtime_base: Path) -> Iterator[Served]:
    model = copy_model(tmp_path_factory.mktemp("http") / "model")
    words = ["-m", "expertflow", "serve", "--model", str(model), "--http", str(free_port()), "--compute-threads", "1",
             "--served-model-name", "tiny", "--served-model-name", "examples/model", "--batch-size", "8"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-P", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [line for line in iter(process.stdout.readline, "Stop: Ctrl-C\n") if line]
        said = dict(line.strip().split(": ", 1) for line in lines)
        yield Served(process, said["HTTP"], said["Address"], str(model))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)
        assert process.returncode == 0


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The command is a process of the module; whether it leaves something is tested where it ends."""


def test_the_official_client_gets_what_ours_gets(served: Served, client: OpenAI) -> None:
    with Client(served.address) as ours:
        (expected,) = ours.generate([PROMPT], 12)
    done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert done.choices[0].text == expected.text and done.model == "tiny"
    assert done.usage is not None and done.usage.completion_tokens == len(expected.token_ids)
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = stream
    assert "".join(piece.choices[0].text for piece in pieces) == expected.text
    assert last.usage is not None and last.usage == done.usage and last.choices == []


def test_seeds_are_kept(client: OpenAI) -> None:
    def texts(prompts: list[str], n: int, seed: int) -> list[str]:
        done = client.completions.create(model="tiny", prompt=prompts, n=n, seed=seed, max_tokens=8)
        return [choice.text for choice in done.choices]

    both = texts([PROMPT, "A river"], 2, 5)
    assert both == texts([PROMPT], 2, 5) + texts(["A river"], 2, 5)
    assert both[1] == texts([PROMPT], 1, 6)[0] and both[0] != both[1]


def test_chats_are_answered_whole_and_as_streams(client: OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=10, temperature=0)
    stream = client.chat.completions.create(
        model="tiny", messages=HI, max_completion_tokens=10, temperature=0, stream=True
    )
    pieces = list(stream)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == done.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == done.choices[0].finish_reason


def test_responses_are_answered_whole_and_as_streams(client: OpenAI) -> None:
    done = client.responses.create(model="tiny", input="Hello", max_output_tokens=10, temperature=0)
    first, *_, last = client.responses.create(
        model="tiny", input="Hello", max_output_tokens=10, temperature=0, stream=True
    )
    assert first.type == "response.created" and last.type == f"response.{done.status}"
    assert last.type != "response.incomplete" or last.response.output_text == done.output_text


def test_the_asyncio_client_runs_many_at_once(served: Served) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            made = [
                client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0) for _ in range(12)
            ]
            return [done.choices[0].text for done in await asyncio.gather(*made)]

    assert len(set(asyncio.run(run()))) == 1


def test_errors_have_the_classes_of_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt=PROMPT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt=PROMPT, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="tiny", prompt=PROMPT, suffix="end")


def test_models_are_listed(client: OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "examples/model"]
    assert client.models.retrieve("examples/model").id == "examples/model"


def test_streams_pause_and_go_on_when_stages_are_killed(served: Served, client: OpenAI) -> None:
    """SIGKILL of each stage under load; the tokens are those of an undisturbed run."""
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 60, "seed": 9, "extra_body": EXACT}
    calm = [client.completions.create(prompt=f"{PROMPT} {i}", **body).choices[0].text for i in range(6)]
    texts = [""] * 6

    def read(index: int) -> None:
        for piece in client.completions.create(prompt=f"{PROMPT} {index}", stream=True, **body):
            texts[index] += piece.choices[0].text

    threads = [threading.Thread(target=read, args=(index,)) for index in range(6)]
    with Watcher(served.address) as watcher:
        for thread in threads:
            thread.start()
        for stage in ("compute", "scheduler", "loader", "predictor"):
            before = watcher.snapshot().restarts[stage]
            watcher.kill(stage)
            wait_until(lambda stage=stage, before=before: watcher.snapshot().restarts[stage] > before)
    for thread in threads:
        thread.join()
    assert texts == calm


def test_a_killed_server_is_back_at_the_same_port(served: Served, client: OpenAI) -> None:
    (front,) = [child for child in psutil.Process(served.process.pid).children() if is_front(child)]
    os.kill(front.pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            return bool(client.models.list().data)
        except openai.APIError:
            return False

    wait_until(answers)
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2).choices


def is_front(child: psutil.Process) -> bool:
    return "expertflow.runtime.http" in child.cmdline()


def test_the_page_does_what_it_says(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Its curl commands and its Python, with the port of this server."""
    port = str(httpx2.URL(served.url).port)
    blocks = re.findall(r"^```(sh|python)\n(.*?)```", PAGE.read_text().replace(":8000", f":{port}"), re.M | re.S)
    names: dict[str, Any] = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        elif text.startswith("curl"):
            done = subprocess.run(shlex.split(text.replace("\\\n", " ")), capture_output=True, text=True, check=True)
            assert '"choices"' in done.stdout or '"ready"' in done.stdout, done.stdout
    assert capsys.readouterr().out.strip().endswith("8")


def test_a_port_in_use_is_refused_before_the_engine_starts(served: Served) -> None:
    port = str(httpx2.URL(served.url).port)
    words = ["-m", "expertflow", "serve", "--model", served.model, "--http", port]
    done = subprocess.run([sys.executable, "-P", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot listen" in done.stderr


def test_a_text_is_scored(served: Served, client: OpenAI) -> None:
    """The log probabilities are those of our client, and those of a prompt need no output."""
    text = f"{PROMPT} science"
    with Client(served.address) as ours:
        (known,) = ours.generate([text], 0, prompt_logprobs=2)
    done = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=2)
    choice = done.choices[0]
    assert known.prompt_logprobs is not None and choice.logprobs is not None and choice.text == text
    values = choice.logprobs.token_logprobs or []
    assert values == [None if entry is None else entry.logprob for entry in known.prompt_logprobs]
    assert "".join(choice.logprobs.tokens or []) == text
    assert choice.logprobs.text_offset == offsets(choice.logprobs.tokens)
    likeliest = [max(top.values()) for top in (choice.logprobs.top_logprobs or [])[1:] if top]
    assert all(best >= (value or 0) for best, value in zip(likeliest, values[1:], strict=True))


def offsets(tokens: list[str] | None) -> list[int]:
    return [len("".join((tokens or [])[:place])) for place in range(len(tokens or []))]


def test_chats_have_log_probabilities(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": HI, "max_completion_tokens": 6, "temperature": 0}
    done = client.chat.completions.create(logprobs=True, top_logprobs=3, **options)
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content or []
    assert all(len(entry.top_logprobs) == 3 and entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    stream = client.chat.completions.create(logprobs=True, top_logprobs=3, stream=True, **options)
    pieces = [piece.choices[0].logprobs for piece in stream]
    streamed = [entry for piece in pieces if piece for entry in piece.content or []]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]


def test_options_of_vllm_reach_the_engine(client: OpenAI) -> None:
    def text(**body: Any) -> Any:
        extra = {"ignore_eos": True, **body}
        done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, temperature=0, extra_body=extra)
        return done.choices[0]

    free = text()
    stop = free.text[5:9]
    cut = text(stop=[stop])
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.model_extra["stop_reason"] == stop
    assert text(stop=[stop], include_stop_str_in_output=True).text == cut.text + stop
    ids = text(return_token_ids=True).model_extra["token_ids"]
    assert text(stop_token_ids=[ids[3]]).model_extra["stop_reason"] == ids[3]
    assert text(logit_bias={str(ids[0]): -100}).text != free.text
    assert text(repetition_penalty=1.5).text != free.text != text(frequency_penalty=2.0).text
    assert text(return_routed_experts=True).model_extra["routed_experts"]
    assert text(priority=-5, min_p=0.2, min_tokens=3, top_k=5).text == free.text


def test_routed_experts_are_an_array_of_every_token(served: Served, client: OpenAI) -> None:
    done = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=4, extra_body=EXACT | {"return_routed_experts": True}
    )
    extra = done.choices[0].model_extra or {}
    array = np.load(io.BytesIO(base64.b64decode(extra["routed_experts"])))
    assert done.usage is not None and array.shape == (done.usage.total_tokens - 1, 6, 4) and array.max() < 32


def test_output_follows_a_schema(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    done = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=40, response_format=form)
    assert json.loads(done.choices[0].message.content or "")["a"] in (1, 2)
    choice = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert choice.choices[0].text in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="a", extra_body={"structured_outputs": {"regex": "("}})
    assert wrong.value.param == "structured_outputs"


def test_a_tool_can_be_forced(client: OpenAI) -> None:
    """Even of a model that never saw one."""
    kinds = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    tools: Any = [{"type": "function", "function": {"name": "count", "parameters": kinds}}]
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "count"}}]
    for choice in choices:
        done = client.chat.completions.create(
            model="tiny", messages=HI, tools=tools, tool_choice=choice, max_completion_tokens=60,
            parallel_tool_calls=False,
        )  # fmt: skip
        (call,) = done.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "count"
        assert json.loads(call.function.arguments)["n"] in (1, 2)
        assert done.choices[0].finish_reason == "tool_calls"


def test_the_official_client_adds_up_a_streamed_call(client: OpenAI) -> None:
    """The same call as without a stream; its name comes once, its arguments in pieces."""
    kinds = {"type": "object", "properties": {"text": {"type": "string", "minLength": 9, "maxLength": 30}},
             "required": ["text"], "additionalProperties": False}  # fmt: skip
    tools: Any = [{"type": "function", "function": {"name": "write", "parameters": kinds}}]
    body: Any = {"model": "tiny", "messages": HI, "tools": tools, "tool_choice": "required", "seed": 1,
                 "max_completion_tokens": 90, "parallel_tool_calls": False}  # fmt: skip
    (whole,) = client.chat.completions.create(**body).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**body) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert whole.type == "function" and streamed.function.name == whole.function.name == "write"
    assert streamed.function.arguments == whole.function.arguments == "".join(pieces) and len(pieces) > 3
