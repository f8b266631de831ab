"""Numbers that make no sense are refused by every command, with the option, the value and the range."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from expertflow.configs.checks import range_words, stated_ranges
from expertflow.configs.schema import RANGES, Config
from expertflow.errors import UsageError
from expertflow.runtime.command_line.outcome import describe
from expertflow.runtime.command_line.registry import command_classes, parse
from expertflow.runtime.commands.common.sampling_options import SamplingCommand
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.workers.traces.trace import write_npz
from msgspec import Meta

NONSENSE = {
    "replay x": ["--batch -1", "--tokens -1", "--held-out 1.5", "--held-out -1", "--held-out nan", "--seed -1",
                 "--forecast-ms -0.5", "--layer-ms nan", "--layer-ms -1", "--message-us inf"],
    "train x": ["--held-out 1", "--held-out -0.1", "--minutes 0", "--minutes inf", "--epochs nan", "--threads 0",
                "--threads 99999999999", "--seed -1", "--seed 99999999999999999999"],
    "trace x": ["--text-tokens 0", "--max-new-tokens 0", "--hidden 2", "--batch-size 0", "--trace-hidden -1"],
    "verify": ["--count 0", "--max-new-tokens -1", "--reads-in-flight 999999999", "--compute-threads -1"],
    "demo": ["--count 0", "--max-new-tokens 0", "--batch-size 0"],
    "serve": ["--start-timeout-s inf", "--start-timeout-s 0", "--restart-limit -1", "--queue-limit 0",
              "--prefill-tokens 0"],
    "top": ["--interval-s 0", "--interval-s nan", "--interval-s 1e30"],
    "widen a b": ["--factor 0", "--factor -2", "--factor 99999999999999"],
}  # fmt: skip


@pytest.mark.parametrize("command", NONSENSE)
def test_a_number_outside_its_range_is_refused_at_once(command: str) -> None:
    """Else it runs with something else than was meant, or fails after minutes, or with a traceback."""
    for words in NONSENSE[command]:
        option, value = words.split()
        with pytest.raises(UsageError) as refused:
            parse([*command.split(), option, value])
        first, *_ = describe(refused.value).splitlines()
        assert re.match(rf"error: {option} must be (from .* to |at least |above )", first)
        told = first.split()[-1]
        assert told == value or float(told) == float(value)


def test_every_number_of_every_command_states_its_range() -> None:
    """An option that is new must not be forgotten; those of sampling are checked as a request's are."""
    kinds = [kind for kind in command_classes().values() if not issubclass(kind, SamplingCommand)]
    own = {(kind, name) for kind in kinds for name in numbers(kind)}
    assert {(kind, name) for kind, name in own if name not in stated_ranges(kind)} == set()
    assert len(own) > 15
    of_engine = {name for name, hint in Config.__annotations__.items() if hint in ("int", "float")}
    assert of_engine == {*RANGES}


def numbers(kind: type[Any]) -> list[str]:
    hints = get_type_hints(kind, include_extras=True)
    bare = {name: get_args(hint)[0] if get_origin(hint) is Annotated else hint for name, hint in hints.items()}
    return [each.name for each in fields(kind) if bare[each.name] in (int, float)]


def test_what_is_allowed_is_allowed() -> None:
    """The ends of a range, on the side that is meant."""
    for words in (
        "replay x --held-out 0 --tokens 0",
        "train x --held-out 0.999 --minutes 0.001",
        "top --interval-s 0.1",
    ):
        parse(words.split())


def test_a_range_is_written_in_words() -> None:
    cases = {"from 0 to 1": Meta(ge=0, le=1), "from 0 to below 1": Meta(ge=0, lt=1), "above 0": Meta(gt=0)}
    cases |= {"at least 1,000": Meta(ge=1000), "above 0 and at most 9": Meta(gt=0, le=9)}
    assert {range_words(allowed) for allowed in cases.values()} == set(cases)


@pytest.mark.parametrize("option", ["link-rate", "expert-bytes"])
@pytest.mark.parametrize("value", ["0", "25%"])
def test_sizes_that_are_nothing(tmp_path: Path, option: str, value: str) -> None:
    """They were divided by, or named a field that no person knows."""
    write_npz(random_trace(3, [20]), tmp_path / "t.npz")
    words = {"--link-rate": "1GB", "--expert-bytes": "1kB", "--layer-ms": "1"} | {f"--{option}": value}
    with pytest.raises(UsageError, match="at least 1") as refused:
        parse(["replay", str(tmp_path / "t.npz"), *(part for pair in words.items() for part in pair)]).run()
    assert refused.value.where == option.replace("-", "_")


def test_a_size_beyond_any_memory() -> None:
    with pytest.raises(UsageError, match="beyond any memory"):
        parse(["serve", "--expert-memory", "9" * 400 + "GB"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --expert-memory 25", "--expert-memory is '25'|Did you mean 25%? or 25GB? For bytes write 25B"),
        ("serve --expert-memory 0.25", "--expert-memory is '0.25'|Did you mean 25%? or 0.25GB?"),
        ("serve --kv-memory 4096", "--kv-memory is '4096'|Did you mean 4096MB? For bytes write 4096B"),
        ("serve --host-memory 1", "--host-memory is '1'|Did you mean 1%? or 1GB?"),
        ("serve --tier host --link-rate 8", "--link-rate is '8'|Did you mean 8GB? or 8MB?"),
        ("plan --device cuda --device-memory 24", "--device-memory is '24'|Did you mean 24GB? or 24MB?"),
        ("demo --expert-memory 25", "--expert-memory is '25'|Did you mean 25%? or 25GB?"),
    ],
)
@pytest.mark.usefixtures("no_process")
def test_a_small_size_without_a_unit_is_asked_back(words: str, said: str) -> None:
    """`--expert-memory 25` was meant as 25 %, and ran with 25 bytes until it failed for another reason."""
    with pytest.raises(UsageError) as refused:
        parse(words.split()).run()
    told = describe(refused.value)
    assert all(part in told for part in said.split("|")), told


def test_sizes_that_are_meant() -> None:
    for size in ("25B", "1000000", "0", "25 %", "4KB"):
        parse(["serve", "--expert-memory", size])
