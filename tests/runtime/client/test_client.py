"""The client library against the real scheduler over real sockets, with a fake compute."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow import errors
from expertflow.configs.schema import Config
from expertflow.ipc.messages import Sampling
from expertflow.runtime.client import Batch, Client, Completion, NotDoneInTime, Request
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_compute import VOCABULARY, continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path) as engine:
        yield engine


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


def accepted(engine: FakeEngine) -> int:
    """Return how many requests have arrived at the scheduler."""
    return 0 if engine.shell is None else engine.shell._state.statistics().accepted


def test_generate_gives_completions_in_order(client: Client) -> None:
    """Each prompt must get its own tokens, whatever finishes first."""
    prompts = [[1 + i] * (1 + i % 4) for i in range(20)]
    done = client.generate(prompts, max_new_tokens=6, eos_ids=[], temperature=1.0, seed=3)
    for i, (prompt, completion) in enumerate(zip(prompts, done, strict=True)):
        assert completion.prompt_ids == prompt
        assert completion.token_ids == continuation(prompt, 6, Sampling(seed=3 + i))
        assert (completion.finish_reason, completion.text) == ("length", "")
        assert 0 <= completion.timings.queued_ns <= completion.timings.first_token_ns <= completion.timings.total_ns
    assert len({completion.request_id for completion in done}) == 20


def test_iteration_streams_tokens_as_they_come(client: Client, engine: FakeEngine) -> None:
    """The first tokens must be there before the last, and together they are the result."""
    batch = client.submit([[1], [2, 3]], max_new_tokens=40, eos_ids=[])
    seen: dict[int, list[int]] = {0: [], 1: []}
    ends: list[str | None] = []
    for event in batch:
        seen[event.index] += event.token_ids
        ends.append(event.finish_reason)
    assert [completion.token_ids for completion in batch.results()] == [seen[0], seen[1]]
    assert len(seen[0]) == len(seen[1]) == 40
    assert ends.count("length") == 2 and len(ends) > 2


def test_the_first_token_is_waited_for(client: Client, engine: FakeEngine) -> None:
    """A caller that waits behind other clients wants to say so, and goes on with what has arrived."""
    engine.paused.set()
    batch = client.submit([[1], [VOCABULARY], [2]], max_new_tokens=3, eos_ids=[])
    assert not batch.wait_until_started(0.05) and batch.under_way == 2
    engine.paused.clear()
    assert batch.wait_until_started()
    assert len(_tokens(batch.results(return_errors=True)[0])) == 3
    assert batch.started and batch.under_way == 0
    assert client.submit([[VOCABULARY]]).wait_until_started(), "nothing is left to wait for"


def test_several_batches_share_a_client(client: Client) -> None:
    """Waiting for one batch must not lose what arrives for another."""
    batches = [client.submit([[i], [i, i]], max_new_tokens=5, eos_ids=[]) for i in range(1, 6)]
    late = batches[-1].results()
    assert [len(completion.token_ids) for completion in late] == [5, 5]
    streamed = sum(len(event.token_ids) for event in batches[0])
    assert streamed == 10
    assert all(batch.results()[1].finish_reason == "length" for batch in batches)


def test_bad_prompts_fail_alone(client: Client) -> None:
    """One bad prompt in a batch leaves the others undisturbed, and is an error of its own."""
    bad: list[Any] = [[], [50], [-1], [True], [1.5], 7, b"\x01", [1] * 65, "text"]
    batch = client.submit([[1], *bad, [2]], max_new_tokens=3, eos_ids=[])
    results = batch.results(return_errors=True)
    assert isinstance(results[0], Completion) and isinstance(results[-1], Completion)
    assert all(isinstance(each, (errors.RequestError, errors.UsageError)) for each in results[1:-1])
    with pytest.raises(errors.RequestError, match="is empty"):
        batch.results()
    assert isinstance(results[-2], errors.UsageError) and "token ids" in str(results[-2])


def test_ids_may_be_integers_of_numpy(client: Client) -> None:
    """Ids often come out of an array."""
    done = client.generate([np.array([1, 2]), [np.int64(3)]], max_new_tokens=2, eos_ids=[])  # type: ignore[list-item]
    assert [completion.prompt_ids for completion in done] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": True}, {"max_new_tokens": 2**70}, {"temperature": math.nan},
        {"batch_invariant": 1}, {"batch_invariant": "yes"},
        {"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"top_k": -1}, {"top_k": 0.5}, {"seed": -1},
        {"deadline_s": 0}, {"deadline_s": math.inf}, {"eos_ids": [0.5]},
        {"eos_ids": [-1]}, {"eos_ids": 5}, {"eos_ids": "5"}, {"stop_ids": None}, {"stop_ids": [-1]},
        {"min_p": 1.5}, {"repetition_penalty": 0}, {"presence_penalty": 2.5}, {"frequency_penalty": math.nan},
        {"logit_bias": [5]}, {"logit_bias": {"5": 1}}, {"logit_bias": {5: 200}}, {"min_new_tokens": 33},
        {"logprobs": 21}, {"logprobs": True}, {"prompt_logprobs": -1}, {"routed_experts": 1}, {"priority": 0.5},
        {"user": 5}, {"user": "u" * 201},
    ],
)  # fmt: skip
def test_impossible_arguments_are_refused_at_once(client: Client, wrong: dict[str, Any]) -> None:
    """They need no engine to be seen as wrong."""
    with pytest.raises(errors.RequestError):
        client.submit([[1]], **wrong)


def test_a_lone_text_is_not_a_list_of_letters(client: Client) -> None:
    """`generate("abc")` would run three prompts."""
    with pytest.raises(errors.UsageError, match=r"\[prompt\]"):
        client.generate("abc")


def test_cancel_keeps_what_there_is(client: Client, engine: FakeEngine) -> None:
    """Requests of a cancelled batch end, the unsent ones included."""
    engine.paused.set()
    batch = client.submit([[1]] * 300, max_new_tokens=50, eos_ids=[])
    batch.cancel()
    assert {completion.finish_reason for completion in batch.results(timeout_s=20)} == {"cancelled"}


def test_one_request_of_a_batch_is_cancelled(client: Client, engine: FakeEngine) -> None:
    """The others go on."""
    engine.paused.set()
    batch = client.submit([[1], [2], [3], [4]], max_new_tokens=5, eos_ids=[], seed=0)
    batch.cancel(1, 3)
    with pytest.raises(errors.RequestError, match="-1 is no request of a batch of 4"):
        batch.cancel(-1)
    engine.paused.clear()
    results = batch.results(timeout_s=20)
    assert [done.finish_reason for done in results] == ["length", "cancelled", "length", "cancelled"]
    assert [results[i].token_ids for i in (0, 2)] == [continuation([i + 1], 5, Sampling(seed=i)) for i in (0, 2)]
    batch.cancel(0)
    assert batch.results()[0].finish_reason == "length"


def test_leaving_a_batchs_context_cancels_what_is_open(client: Client) -> None:
    with client.submit([[1]], max_new_tokens=60, eos_ids=[]) as batch:
        next(iter(batch))
    assert batch.results(timeout_s=20)[0].finish_reason in ("cancelled", "length")
    assert len(client.generate([[2]], 3, eos_ids=[])[0].token_ids) == 3


def test_requests_have_options_of_their_own(client: Client) -> None:
    """What one leaves out is taken from the call; a wrong one fails alone."""
    stop = continuation([3], 4, Sampling(seed=9))[1]
    prompts: list[Any] = [
        Request([1], max_new_tokens=2),
        [2],
        Request([3], seed=9, eos_ids=[stop]),
        Request([4], temperature=-1),
        Request([5], deadline_s=1e-3, max_new_tokens=50),
        Request([]),
        Request([6], top_p=0.0),
    ]
    batch = client.submit(prompts, max_new_tokens=4, seed=20, eos_ids=[])
    results = batch.results(timeout_s=20, return_errors=True)
    assert _tokens(results[0]) == continuation([1], 2, Sampling(seed=20))
    assert _tokens(results[1]) == continuation([2], 4, Sampling(seed=21))
    third = _tokens(results[2])
    assert third == continuation([3], len(third), Sampling(seed=9)) and third[-1] == stop and len(third) <= 2
    assert isinstance(results[3], errors.RequestError) and results[3].where == "temperature"
    assert isinstance(results[4], Completion)
    assert [str(results[i]).split(":")[0] for i in (5, 6)] == ["prompt", "top_p"]


def test_a_seed_of_a_call_belongs_to_the_place_in_the_batch(client: Client) -> None:
    """A request's own seed is used as it is."""
    done = client.generate([[1], Request([1], seed=3), [1]], 4, seed=5, eos_ids=[])
    assert [each.token_ids for each in done] == [continuation([1], 4, Sampling(seed=seed)) for seed in (5, 3, 7)]


def test_events_of_several_batches_come_in_one_iteration(client: Client) -> None:
    """Whoever serves many batches in one loop must not wait for one while another has tokens."""
    batches = [client.submit([[i], [i, i]], max_new_tokens=40, eos_ids=[], seed=0) for i in (1, 2, 3)]
    seen: dict[Batch, list[list[int]]] = {batch: [[], []] for batch in batches}
    for batch, event in client.events(*batches):
        seen[batch][event.index] += event.token_ids
    for i, batch in enumerate(batches, 1):
        assert seen[batch] == [continuation(ids, 40, Sampling(seed=j)) for j, ids in enumerate(([i], [i, i]))]
    assert list(client.events()) == [] and list(client.events(*batches)) == []


def test_events_of_another_clients_batch_are_refused(client: Client, engine: FakeEngine) -> None:
    """Nobody would receive them: the wait would have no end."""
    with Client(engine.address) as other, pytest.raises(errors.UsageError, match="another client"):
        client.events(other.submit([[1]], 2))


def test_an_unknown_option_is_an_error(client: Client) -> None:
    wrong: dict[str, Any] = {"max_tokens": 3}
    with pytest.raises(TypeError, match="max_tokens"):
        client.submit([[1]], **wrong)


def _tokens(result: Completion | errors.ExpertFlowError) -> list[int]:
    assert isinstance(result, Completion), result
    return result.token_ids


def test_a_request_past_its_deadline_ends_by_itself(client: Client, engine: FakeEngine) -> None:
    engine.paused.set()
    [completion] = client.generate([[1]], deadline_s=0.05)
    assert completion.finish_reason == "deadline"


def test_results_gives_up_in_time(client: Client, engine: FakeEngine) -> None:
    """A timeout must raise, and leave the batch alive."""
    engine.paused.set()
    batch = client.submit([[1]], max_new_tokens=3, eos_ids=[])
    with pytest.raises(NotDoneInTime, match="1 of 1"):
        batch.results(timeout_s=0.05)
    with pytest.raises(TimeoutError):
        batch.results(timeout_s=0)
    engine.paused.clear()
    assert len(batch.results(timeout_s=20)[0].token_ids) == 3


def test_thousands_of_prompts_in_one_batch(tmp_path: Path) -> None:
    """Back-pressure: a queue shorter than the batch must neither lose nor refuse a prompt."""
    config = Config(queue_limit=20, kv_memory="1MB", batch_size=64)
    with FakeEngine(tmp_path, config) as engine, Client(engine.address) as one, Client(engine.address) as other:
        prompts = [[i % 50] for i in range(1000)]
        batches = [client.submit(prompts, max_new_tokens=2, eos_ids=[], seed=0) for client in (one, other)]
        threads = [threading.Thread(target=batch.results) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        expected = [continuation(prompt, 2, Sampling(seed=i)) for i, prompt in enumerate(prompts)]
        for batch in batches:
            assert [completion.token_ids for completion in batch.results(timeout_s=0)] == expected


def test_busy_surfaces_when_asked_for(tmp_path: Path) -> None:
    """Whoever does not want to wait must be told the limit."""
    config = Config(queue_limit=2, kv_memory="100KB", batch_size=1)
    with FakeEngine(tmp_path, config) as engine, Client(engine.address) as client, Client(engine.address) as other:
        engine.paused.set()
        first = client.submit([[1]] * 2)
        wait_until(lambda: accepted(engine) == 2)
        refused = other.submit([[2]] * 3, wait_when_busy=False)
        error = next(event.error for event in refused if event.error is not None)
        assert isinstance(error, errors.BusyError) and "2" in str(error)
        engine.paused.clear()
        assert len(first.results(timeout_s=20)) == 2


def test_an_address_without_an_engine_is_refused_at_once(tmp_path: Path) -> None:
    """A wrong address must say so at once."""
    for address in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(errors.EngineError, match="no engine answers there") as refused:
            Client(address)
        assert "Check the address" in refused.value.remedy and refused.value.where == str(address)


@pytest.mark.parametrize("address", [None, 5, b"/tmp", ["/tmp"], ""])
def test_an_address_that_is_none(address: Any) -> None:
    with pytest.raises(errors.UsageError, match="must be a path") as refused:
        Client(address)
    assert refused.value.where == "address"


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, "5", True])
def test_times_that_are_none(client: Client, engine: FakeEngine, seconds: Any) -> None:
    """NaN waited for ever, or raised from deep inside."""
    batch = client.submit([[1]], max_new_tokens=1)
    calls: dict[str, Callable[[], object]] = {
        "timeout_s": lambda: batch.results(timeout_s=seconds),
        "connect_timeout_s": lambda: Client(engine.address, connect_timeout_s=seconds),
        "answer_timeout_s": lambda: Client(engine.address, answer_timeout_s=seconds),
    }
    for name, call in [*calls.items(), ("timeout_s", lambda: client.stats(seconds))]:
        with pytest.raises(errors.UsageError, match="must be seconds") as refused:
            call()
        assert refused.value.where == name
    assert len(batch.results(timeout_s=20)) == 1


def test_eos_ids_outside_the_vocabulary(client: Client) -> None:
    """The output would never end where it was meant to."""
    with pytest.raises(errors.RequestError, match="not in the vocabulary") as refused:
        client.generate([[1]], eos_ids=[VOCABULARY])
    assert refused.value.where == "eos_ids"


def test_prompts_that_are_none(client: Client) -> None:
    with pytest.raises(errors.UsageError, match="must be a list, not NoneType"):
        client.generate(None)  # pyright: ignore[reportArgumentType]


def test_a_dead_engine_is_an_error_not_a_hang(tmp_path: Path) -> None:
    """Results, iteration and new requests all raise."""
    with FakeEngine(tmp_path) as engine:
        client = Client(engine.address)
        engine.paused.set()
        batch = client.submit([[1]], max_new_tokens=3)
        engine.kill_scheduler()
    with pytest.raises(errors.EngineError):
        batch.results()
    assert [event.error is not None for event in batch] == [True]
    with pytest.raises(errors.EngineError):
        client.submit([[1]])
    client.close()


def test_a_stopping_engine_says_so(tmp_path: Path) -> None:
    """Open requests end with the reason, not by a timeout."""
    with FakeEngine(tmp_path) as engine:
        client = Client(engine.address)
        engine.paused.set()
        batch = client.submit([[1]], max_new_tokens=3)
        wait_until(lambda: accepted(engine) == 1)
        engine.kill_scheduler(silent=False)
        with pytest.raises(errors.EngineError, match="stopped"):
            batch.results(timeout_s=20)
    client.close()


def test_a_silent_scheduler_is_an_error_in_the_end(engine: FakeEngine) -> None:
    """An engine whose scheduler never comes back must not hold a client for ever."""
    with Client(engine.address) as client:
        engine.kill_scheduler()
        client._state.pool._connections[0]._answer_timeout_ns = 300_000_000
        with pytest.raises(errors.EngineError, match="not answered"):
            client.generate([[1]])


def test_requests_survive_the_schedulers_death(client: Client, engine: FakeEngine) -> None:
    """Submitted again by id; what was delivered stays as it was, nothing is delivered twice."""
    batch = client.submit([[i] for i in range(30)], max_new_tokens=40, eos_ids=[], seed=1, temperature=1.0)
    seen: dict[int, list[int]] = {i: [] for i in range(30)}
    kills = 0
    for event in batch:
        seen[event.index] += event.token_ids
        if kills < 3 and len(seen[5 * kills]) > 5:
            kills += 1
            engine.kill_scheduler()
            engine.start_scheduler()
    assert kills == 3
    for i in range(30):
        assert seen[i] == continuation([i], 40, Sampling(seed=1 + i))
        assert batch.results()[i].token_ids == seen[i]


def test_cancelled_requests_end_although_the_scheduler_died(client: Client, engine: FakeEngine) -> None:
    """A cancel must not be lost with the process that got it."""
    engine.paused.set()
    batch = client.submit([[1]], max_new_tokens=9)
    engine.kill_scheduler()
    batch.cancel()
    engine.start_scheduler()
    assert batch.results(timeout_s=20)[0].finish_reason == "cancelled"


def test_computes_death_is_a_pause(client: Client, engine: FakeEngine) -> None:
    """Clients see nothing of it but time."""
    batch = client.submit([[i] for i in range(8)], max_new_tokens=60, eos_ids=[], seed=0, temperature=1.0)
    for event in batch:
        if event.index == 3 and len(engine.computes) < 3:
            engine.kill_compute()
    assert [c.token_ids for c in batch.results()] == [continuation([i], 60, Sampling(seed=i)) for i in range(8)]
    assert batch.results()[0].timings.recomputed >= 1


def test_a_client_that_leaves_cancels_its_requests(engine: FakeEngine) -> None:
    """Abandoned work must not keep the engine busy."""
    engine.paused.set()
    with Client(engine.address) as client:
        client.submit([[1]] * 100, max_new_tokens=60, eos_ids=[])
        wait_until(lambda: accepted(engine) == 100)
    engine.paused.clear()
    with Client(engine.address) as client:
        client.generate([[2]], max_new_tokens=60, eos_ids=[])
    assert len(engine.computes[-1].ran) < 130


def test_a_closed_client_says_so(engine: FakeEngine) -> None:
    """Not a hang, not a zmq error."""
    client = Client(engine.address)
    engine.paused.set()
    batch = client.submit([[1]])
    client.close()
    client.close()
    with pytest.raises(errors.EngineError, match="closed"):
        client.submit([[1]])
    with pytest.raises(errors.EngineError, match="closed"):
        batch.results()
    with pytest.raises(errors.EngineError, match="closed"):
        list(batch)
