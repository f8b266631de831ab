"""A batch file runs against a real scheduler: exact results, whatever dies; nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import EngineError
from expertflow.ipc.messages import Sampling
from expertflow.runtime.batch_files.calls import name_tool_calls, seeded
from expertflow.runtime.batch_files.checking import check_lines, served_model, stated_facts
from expertflow.runtime.batch_files.errors import OutputError
from expertflow.runtime.batch_files.job import JobFiles, JobModel, open_input, open_job
from expertflow.runtime.batch_files.progress import BatchProgress
from expertflow.runtime.batch_files.request_line import seed_of
from expertflow.runtime.batch_files.runner import BatchRun, lines_under_way, report_faults
from expertflow.runtime.batch_files.work_order import input_order
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.client.options import Request
from expertflow.runtime.openai.answers import ChatAnswer, ChatChoice, ChatMessage, FunctionCall, ToolCall
from expertflow.runtime.openai.usage import make_usage
from expertflow.tests.runtime.batch_files.jobs import request_text
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine
from expertflow.tests.scheduler.world import EOS

LENGTH = 6
PROMPTS = {f"line {number}": [1 + number % 40, 1 + number % 7] for number in range(60)}
Meanwhile = Callable[[BatchProgress], None]


def body_of(prompt: object, **more: object) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": LENGTH, "temperature": 1.0, "return_token_ids": True, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without a tokenizer, beside the files of requests."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 50, "max_position_embeddings": 64}')
    lines = [request_text(name, body=body_of(prompt)) for name, prompt in PROMPTS.items()]
    (tmp_path / "in").write_text("\n".join([*lines[:5], "{", *lines[5:], lines[0]]))
    return tmp_path


def run_batch(folder: Path, engine: FakeEngine, meanwhile: Meanwhile = lambda progress: None) -> BatchProgress:
    """Run or resume the job in `folder`. `meanwhile` is called with the progress every few milliseconds."""
    files = JobFiles.of(folder / "in", folder / "out", folder / "err")
    with open_input(files.requests) as given, open_job(files, given, JobModel(folder / "model", "model"), {}) as job:
        progress = BatchProgress(len(given.index), int(given.index.ended.sum()), time.monotonic())
        report_faults(given, job, progress)

        async def run() -> None:
            async with AsyncClient(engine.address) as client:
                run = BatchRun(
                    given=given, job=job, model=served_model(client.model), progress=progress,
                    show=lambda progress, now_s: None, under_way=8,
                )  # fmt: skip
                watching = asyncio.create_task(_watch(progress, meanwhile))
                try:
                    await run.run(client, input_order(given))
                finally:
                    watching.cancel()

        asyncio.run(run())
    return progress


async def _watch(progress: BatchProgress, meanwhile: Meanwhile) -> None:
    while True:
        meanwhile(progress)
        await asyncio.sleep(0.002)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line["response"]["body"] for line in lines}


def expected(name: str) -> list[int]:
    whole = continuation(PROMPTS[name], LENGTH, Sampling(temperature=1.0, seed=seed_of(name)))
    return whole[: whole.index(EOS) + 1] if EOS in whole else whole


def assert_whole(folder: Path) -> None:
    """Every request has the tokens that its prompt and its id give, and every bad line its error."""
    found = results(folder)
    assert found.keys() == PROMPTS.keys()
    for name, body in found.items():
        assert body["choices"][0]["token_ids"] == expected(name)
        assert body["usage"]["completion_tokens"] == len(expected(name))
    errors = [json.loads(line) for line in (folder / "err").read_bytes().splitlines()]
    assert [(line["line"], line["error"]["code"]) for line in errors] == [
        (6, "invalid_json"),
        (62, "duplicate_custom_id"),
    ]


@pytest.fixture
def engine(folder: Path) -> Any:
    with FakeEngine(folder / "model") as running:
        yield running


def test_all_lines_run(folder: Path, engine: FakeEngine) -> None:
    progress = run_batch(folder, engine)
    assert_whole(folder)
    assert (progress.ended, progress.failed, progress.left) == (62, 2, 0)
    assert progress.tokens == sum(len(expected(name)) for name in PROMPTS)
    before = (folder / "out").read_bytes()
    assert run_batch(folder, engine).ended == 0
    assert (folder / "out").read_bytes() == before


def once(act: Callable[[], None], ended: int) -> Meanwhile:
    """Act once, as soon as so many lines have ended."""
    left = [act]

    def meanwhile(progress: BatchProgress) -> None:
        if left and progress.ended >= ended:
            left.pop()()

    return meanwhile


@pytest.mark.parametrize("killed", ["kill_compute", "kill_scheduler"])
def test_a_stage_may_die(folder: Path, engine: FakeEngine, killed: str) -> None:
    """The same tokens, and no line twice."""

    def kill() -> None:
        getattr(engine, killed)()
        if engine.shell is None:
            engine.start_scheduler()

    run_batch(folder, engine, once(kill, ended=20))
    assert_whole(folder)


class Stopped(Exception):
    """Ends a run from inside."""


def stop() -> None:
    raise Stopped


def test_an_engine_that_ends_stops_the_job_which_another_goes_on_with(folder: Path, tmp_path: Path) -> None:
    with FakeEngine(folder / "model") as first, pytest.raises(EngineError):
        run_batch(folder, first, once(lambda: first.__exit__(None, None, None), ended=20))
    found = results(folder)
    assert 10 < len(found) < len(PROMPTS)
    assert len((folder / "err").read_bytes().splitlines()) == 2
    with FakeEngine(folder / "model") as second:
        progress = run_batch(folder, second)
    assert progress.before == len(found) + 2
    assert_whole(folder)


def test_a_full_disk_stops_the_job(folder: Path, engine: FakeEngine) -> None:
    from expertflow.tests.runtime.batch_files.test_store import limited

    with limited(6_000), pytest.raises(OutputError):
        run_batch(folder, engine)
    assert 5 < len(results(folder)) < len(PROMPTS)
    run_batch(folder, engine)
    assert_whole(folder)


def test_a_body_that_is_refused_ends_as_an_error_with_its_reason(folder: Path, engine: FakeEngine) -> None:
    bad = {
        "too long": body_of([1] * 70),
        "unknown id": body_of([500]),
        "no prompt": {"max_tokens": 1},
        "another model": body_of([1], model="gpt"),
        "stream": body_of([1], stream=True),
        "negative": body_of([1], temperature=-1),
    }
    lines = [request_text(name, body=body) for name, body in bad.items()]
    (folder / "in").write_text("\n".join([*lines, request_text("good", body=body_of([1]))]))
    progress = run_batch(folder, engine)
    assert list(results(folder)) == ["good"] and progress.failed == len(bad)
    errors = {(line := json.loads(text))["custom_id"]: line for text in (folder / "err").read_text().splitlines()}
    assert errors.keys() == bad.keys()
    for number, name in enumerate(bad, 1):
        response = errors[name]["response"]
        assert errors[name]["line"] == number and errors[name]["error"] is None
        assert response["status_code"] == (404 if name == "another model" else 400)
        assert response["body"]["error"]["message"]
    with open_input(folder / "in") as given:
        faults = dict(check_lines(given, served_model(stated_facts(folder / "model"))))
    assert faults.keys() == set(range(1, len(bad) + 1)) and "gpt" in faults[4]


def test_several_requests_of_a_line_are_one_result(folder: Path, engine: FakeEngine) -> None:
    (folder / "in").write_text(request_text("a", body=body_of([[1], [2]], n=2)))
    run_batch(folder, engine)
    choices = results(folder)["a"]["choices"]
    seeds = [seed_of("a") + i for i in range(4)]
    for choice, prompt, seed in zip(choices, [[1], [1], [2], [2]], seeds, strict=True):
        whole = continuation(prompt, LENGTH, Sampling(temperature=1.0, seed=seed))
        assert choice["token_ids"] == whole[: len(choice["token_ids"])] and choice["token_ids"]


def test_seeds_of_a_body_stay() -> None:
    given = [Request([1], seed=3), Request([1], seed=None), Request([1])]
    assert [request.seed for request in seeded(given, "a")] == [3, seed_of("a") + 1, seed_of("a") + 2]
    assert all(request.wait_when_busy is True for request in seeded(given, "a"))


def test_ids_of_tool_calls_are_those_of_every_run() -> None:
    """They are drawn for HTTP, and would make each run's lines differ."""

    def answer(drawn: str) -> ChatAnswer:
        calls = [ToolCall(f"call_{drawn}{place}", FunctionCall("f", "{}")) for place in range(2)]
        plain, calling = ChatMessage(content="a"), ChatMessage(content=None, tool_calls=calls)
        messages = enumerate((plain, calling))
        choices = [ChatChoice(index=index, message=message, finish_reason="stop") for index, message in messages]
        return ChatAnswer(id="", created=0, model="m", choices=choices, usage=make_usage(1, 1))

    first, second = (name_tool_calls(answer(drawn), "job a") for drawn in "xy")
    assert first == second != name_tool_calls(answer("x"), "job b")
    calls = first.choices[1].message.tool_calls
    assert isinstance(calls, list) and len({call.id for call in calls}) == 2 and first.choices[0].message.content == "a"


def test_a_bounded_number_of_lines_is_under_way(folder: Path, engine: FakeEngine) -> None:
    """However long the file is."""
    most = 0

    def count(progress: BatchProgress) -> None:
        nonlocal most
        if engine.shell is not None:
            stats = engine.shell._state.statistics()
            most = max(most, stats.queue + stats.running)

    run_batch(folder, engine, count)
    assert 0 < most <= 8


def test_lines_under_way_keep_every_engine_busy() -> None:
    assert lines_under_way(8, 1) == 16 and lines_under_way(64, 2) == 256 and lines_under_way(1, 1) == 16
