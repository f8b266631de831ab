"""The clients by which texts are asked for: the same text as by the official client is right."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .client import Check, run_program, same
from .environments import Environment
from .server import KEY, NAME, Server

PROMPT = "And it came to pass in"
QUESTION = "In the beginning God created"


def check_openai(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    (got,) = run_program(environment, server, "openai_client")
    return same(got, expected, text="text", chat="chat", usage="usage")


def check_litellm(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    got, *rest = run_program(environment, server, "litellm_client")
    checks = same(got, expected, text="text", chat="chat", streamed="chat", later="chat", usage="usage")
    return [*checks, Check("a wrong key is an AuthenticationError", rest == [{"refused": True}])]


def check_langchain(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    (got,) = run_program(environment, server, "langchain_client")
    names = {"chat": "chat", "streamed": "chat", "text": "text", "usage": "usage", "stream_usage": "usage"}
    batch = [expected["chat"], expected["text"]]  # the template leaves a single message as it is
    by_batch = Check("batch: as by openai", got.get("batch") == batch, repr(got.get("batch")))
    return [*same(got, expected, **names), by_batch]


def check_curl(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    """Ask by curl: a text, a stream of server-sent events, the models, a wrong key."""
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = json.loads(curl(server, "/v1/completions", body))
    events = [line for line in curl(server, "/v1/completions", body | {"stream": True}).splitlines() if line]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    streamed = "".join(piece["choices"][0]["text"] for piece in pieces)
    models = [model["id"] for model in json.loads(curl(server, "/v1/models"))["data"]]
    refused = curl(server, "/v1/models", None, "--write-out", "%{http_code}", "--output", "/dev/null", key="wrong")
    return [
        Check("text: as by openai", whole["choices"][0]["text"] == expected["text"]),
        Check("stream: as by openai, ends with [DONE]", streamed == expected["text"] and events[-1] == "data: [DONE]"),
        Check("the model is listed", NAME in models, str(models)),
        Check("a wrong key is 401", refused == "401", refused),
    ]


def curl(server: Server, path: str, body: dict[str, Any] | None = None, *options: str, key: str = KEY) -> str:
    """Return what curl prints for a path of the server."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--header", f"Authorization: Bearer {key}"]
    if body is not None:
        command += ["--json", json.dumps(body)]
    return subprocess.run([*command, *options, server.url + path], capture_output=True, text=True, check=True).stdout


def check_llm(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    """Ask by the command `llm`, for a conversation and for a text, whole and streamed."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"model_name": NAME, "api_base": f"{server.url}/v1", "api_key_name": "expertflow"}
        models = [{"model_id": "chat", **own}, {"model_id": "text", **own, "completion": True}]
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
        checks = []
        for model, prompt, of in (("chat", QUESTION, "chat"), ("text", PROMPT, "text")):
            for stream in ([], ["--no-stream"]):
                words = ["llm", "-m", model, prompt, "--key", KEY, "-o", "max_tokens", "12", "-o", "temperature", "0"]
                done = environment.run([*words, *stream], variables={"LLM_USER_PATH": folder})
                what = f"{model}, {'whole' if stream else 'streamed'}: as by openai"
                seen = repr(done.stdout + done.stderr[-300:])
                checks.append(Check(what, done.stdout.rstrip("\n") == expected[of].rstrip("\n"), seen))
    return checks


def check_schemathesis(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    """Let schemathesis make requests of the server's own description; nothing may crash it or break the description."""
    folder = tempfile.gettempdir()  # it leaves its own files where it runs
    words = ["schemathesis", "run", f"{server.url}/openapi.json", "--max-examples", "10", "--no-color"]
    words += ["--header", f"Authorization: Bearer {KEY}", "--request-timeout", "60", "--generation-deterministic"]
    words += ["--suppress-health-check", "all", "--exclude-checks", "positive_data_acceptance"]  # no schema says it all
    done = environment.run(words, timeout_s=1800, folder=folder)
    return [Check("answers as its description says", done.returncode == 0, (done.stdout + done.stderr)[-3000:])]
