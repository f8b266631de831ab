"""Structured output and stop strings through all processes, killed ones too, with a model of random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Completion, Config, Request, Structured, Supervisor
from expertflow.errors import RequestError
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "size": {"enum": [1, 20, 300]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
JSON = Request("Once", structured=Structured(json_schema=SCHEMA), temperature=1.0)


def save_ascii_tokenizer(folder: Path) -> None:
    """Write a tokenizer with an end of text and a token for each printable character."""
    letters = ["Ġ" if letter == " " else letter for letter in map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE({"</s>": EOS, **{letter: i for i, letter in enumerate(letters, 1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("random")
    model = save_tiny("qwen3_moe", folder, eos_token_id=EOS)
    assert model.config.vocab_size == VOCABULARY
    save_ascii_tokenizer(folder)
    with Supervisor(Config.load(model=folder, expert_memory="25%", restart_limit=20, batch_size=12)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Supervisor) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


def check_json(done: Completion) -> None:
    value = json.loads(done.text)
    assert done.finish_reason == "stop" and done.token_ids[-1] == EOS
    assert list(value) == ["name", "size", "tags"] and 1 <= len(value["name"]) <= 8 and value["size"] in (1, 20, 300)
    assert 2 <= len(value["tags"]) <= 4 and set(value["tags"]) <= {True, False}


def test_outputs_have_their_form(client: Client) -> None:
    """Rows with and without a form run together; each form is followed by several seeds, and greedily."""
    forms = [Structured(regex="[a-z]{3}[0-9]"), Structured(choice=["yes", "no"]), Structured(grammar='start: "ab"+')]
    others = [Request("x", structured=form, temperature=1.5, seed=i) for i, form in enumerate(forms)]
    plain = Request("Once", temperature=1.0, seed=4)
    batch = [*(replace(JSON, seed=seed) for seed in range(8)), replace(JSON, temperature=0.0), *others, plain]
    done = client.generate(batch, max_new_tokens=120)
    for completion in done[:9]:
        check_json(completion)
    assert len({completion.text for completion in done[:8]}) > 6
    assert re.fullmatch("[a-z]{3}[0-9]", done[9].text) and done[10].text in ("yes", "no")
    assert re.fullmatch("(ab)+", done[11].text[: len(done[11].text) // 2 * 2])
    assert done[12].token_ids == client.generate([plain], max_new_tokens=120)[0].token_ids


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_deaths_change_no_letter(engine: Supervisor, client: Client) -> None:
    """I4: the state of a grammar is made of the tokens again; so is the place of a stop string."""
    text = client.generate(["b"], 200, eos_ids=[])[0].text
    requests = [*(replace(JSON, seed=seed) for seed in range(4)), Request("b", eos_ids=[], stop=[text[150:154]])]
    whole = client.generate(requests, max_new_tokens=200)
    batch = client.submit(requests, max_new_tokens=200)
    for stage in ("compute", "scheduler", "compute"):
        await_tokens(batch, 25)
        engine.kill(stage)
    done = batch.results(timeout_s=120)
    assert [(each.text, each.token_ids) for each in done] == [(each.text, each.token_ids) for each in whole]
    assert done[4].stop_reason == text[150:154] and done[4].text == text[: text.find(text[150:154])]
    for completion in done[:4]:
        check_json(completion)


def test_a_form_that_leaves_no_token_fails_its_row_alone(client: Client) -> None:
    """It wants to end, and may not."""
    stuck = replace(JSON, structured=Structured(choice=["no"]), min_new_tokens=10)
    foreign = replace(JSON, structured=Structured(choice=["日本"]))
    results = client.submit([stuck, foreign, Request("x")], 40).results(return_errors=True)
    assert isinstance(results[0], RequestError) and "leaves no token" in results[0].what
    assert isinstance(results[1], RequestError)
    assert isinstance(results[2], Completion)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"structured": Structured(json_schema={"type": "objec"})}, "objec"),
        ({"structured": Structured(choice=["a"]), "first_token": 5}, "first token"),
        ({"structured": Structured(choice=["a"]), "eos_ids": []}, "ends the output"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_submission(client: Client, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        client.submit(["x"], **options)
