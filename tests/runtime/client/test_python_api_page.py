"""docs/python-api.md says what is true: its code runs, its tables are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import re
from dataclasses import fields
from pathlib import Path

import expertflow
from expertflow import AsyncBatch, AsyncClient, Batch, Client, Request
from expertflow.runtime.client.options import OptionNames, RequestOptions
from expertflow.tests.runtime.client.test_text import save_byte_tokenizer
from expertflow.tests.scheduler.fake_engine import FakeEngine

PAGE = (Path(expertflow.__file__).parent / "docs" / "python-api.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def block_with(words: str) -> str:
    [block] = [block for block in BLOCKS if words in block]
    return block


def test_every_block_is_python() -> None:
    for block in BLOCKS:
        compile(block, "python-api.md", "exec")


def test_the_blocks_for_clients_run(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    with FakeEngine(tmp_path, vocabulary=257) as engine:
        with Client(engine.address) as client:
            names: dict[str, object] = {"client": client}
            exec(block_with("completions = batch.results()"), names)
            completions = names["completions"]
            assert isinstance(completions, list) and len(completions[1].token_ids) <= 5
        names = {}
        exec(block_with("async def main"), names)
        main = names["main"]
        assert inspect.iscoroutinefunction(main)
        asyncio.run(asyncio.wait_for(main(engine.address), 20))


def test_the_table_names_every_option() -> None:
    """The three places where options are written must agree, too."""
    table = PAGE[PAGE.index("| option |") : PAGE.index("A **`Batch`**")]
    names = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert set(names) == {field.name for field in fields(RequestOptions)}
    assert {*OptionNames.__annotations__, "max_new_tokens"} == set(names)
    assert {field.name for field in fields(Request)} - {"prompt"} == set(names)


def test_both_clients_have_the_same_methods() -> None:
    """Whoever moves to asyncio should have nothing to look up."""
    for blocking, awaited, more in ((Client, AsyncClient, {"connect"}), (Batch, AsyncBatch, set[str]())):
        public = {name for name in dir(blocking) if not name.startswith("_")}
        assert public <= {name for name in dir(awaited) if not name.startswith("_")}
        assert more <= set(dir(awaited))
        for name in public:
            one, other = getattr(blocking, name), getattr(awaited, name)
            if callable(one):
                assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters), name
