"""Completions of a file's requests with Ray Data, over the HTTP front of a cluster or of `expertflow serve --http`.

    python examples/ray_data.py examples/requests.jsonl OUT_FOLDER --url http://127.0.0.1:8000

Needs pip install 'ray[data]' aiohttp. For pipelines that are in Ray Data anyway: `expertflow batch --cluster` does the
same without HTTP, goes on where it was stopped, and gives exactly one result a line.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

TIMEOUT_S = 3600.0
"""Longest time of a request: those at the end of a long queue wait, and aiohttp's own limit is five minutes."""


def main() -> None:
    """Send the bodies of all lines and write their texts as JSON lines."""
    options = _parse()
    key = os.environ.get("OPENAI_API_KEY", "")
    config = HttpRequestProcessorConfig(
        url=f"{options.url}/v1/completions",
        headers={"authorization": f"Bearer {key}"} if key else None,
        batch_size=options.at_once,
        concurrency=1,
        max_retries=5,
        session_factory=_session,
    )
    processor = build_processor(config, preprocess=_to_payload, postprocess=_to_row)
    processor(ray.data.read_text(options.requests)).write_json(options.results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("requests", help="lines in the format of batch files, to /v1/completions")
    parser.add_argument("results", help="folder for the results")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--at-once", type=int, default=64, help="requests that are sent together")
    return parser.parse_args()


def _session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))


def _to_payload(row: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a line; the seed makes a request that is sent again give the same text."""
    line = json.loads(row["text"])
    body = line["body"]
    payload = {
        "prompt": body["prompt"],
        "max_tokens": body.get("max_tokens", 64),
        "temperature": float(body.get("temperature", 0.0)),
        "seed": body.get("seed", 0),
    }
    return {"payload": payload, "custom_id": line["custom_id"]}


def _to_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": row["custom_id"], "text": row["http_response"]["choices"][0]["text"]}


if __name__ == "__main__":
    main()
