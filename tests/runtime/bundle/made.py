"""A bundle made by hand: nine seconds of an engine whose loader has just died."""

from __future__ import annotations

from expertflow.runtime.bundle.contents import Bundle, Manifest
from expertflow.runtime.bundle.gather import examine_machine
from expertflow.tests.runtime.monitor.made_views import activity, point, snapshot


def made_bundle() -> Bundle:
    return Bundle(
        manifest=Manifest(version="1.2.3", written="2026-11-30T12:00:00+00:00", engines=[""], timeline="watched"),
        configurations={"": {"model": "m"}},
        versions={},
        machine=examine_machine(),
        snapshot=snapshot(9, {"loader": 1}),
        history={"": [point(second) for second in range(1, 10)]},
        activity={"": activity(9)},
        metrics="",
        timeline=b"[\n]\n",
    )
