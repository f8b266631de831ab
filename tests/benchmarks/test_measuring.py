"""Timing what a start spends on measuring products: fresh caches, and what an engine that reports nothing means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from expertflow.benchmarks import measuring
from expertflow.benchmarks.contenders.base import Missing
from expertflow.benchmarks.measuring import CACHE, empty_cache, measure


def test_every_first_start_has_an_empty_cache_that_later_ones_share(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[str] = []

    def start(folder: Path) -> float:
        cache = Path(os.environ[CACHE])
        found = (cache / "kept").exists()
        (cache / "kept").touch()
        caches.append(str(cache))
        return 0.1 if found else 8.0

    monkeypatch.setattr(measuring, "measuring_s", start)
    rows = measure(Path(), firsts=2, later=1)
    assert [(row["start"], row["measuring_s"]) for row in rows] == [("first", 8.0), ("later", 0.1)] * 2
    assert len(set(caches)) == 2
    assert not any(Path(cache).exists() for cache in caches)


@pytest.mark.parametrize("before", ["/somewhere", None])
def test_the_cache_is_as_before_also_after_a_failure(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    if before:
        monkeypatch.setenv(CACHE, before)
    with pytest.raises(Missing), empty_cache():
        raise Missing("nothing")
    assert os.environ.get(CACHE) == before
