"""Paths of the page: its files, which need no key, and its live figures, which do."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from ...errors import UsageError
from ..bundle.views import bundle_views, read_small_bundle
from ..openai.errors import MISSING, SERVER, ApiError
from ..page.files import HEADERS, INDEX
from ..page.page_json import history_json, now_json
from .engine_link import EngineLink
from .generation import STREAM_HEADERS
from .replies import JsonReply, Reply, read_body_of

ROOT, FILES, EVENTS, BUNDLE = "/", "/page/{file}", "/watch/events", "/watch/bundle"
ZIP = "application/zip"
_FOLDER = FILES.partition("{")[0]


def route_of(path: str) -> str:
    """Return the path without the name of a file; empty if it is none of the page."""
    if path.startswith(_FOLDER):
        return FILES
    return path if path in (ROOT, EVENTS) else ""


async def page_file(request: Request, link: EngineLink) -> ASGIApp:
    """Answer with a file of the page. Raises ApiError (404)."""
    name = request.url.path.removeprefix(_FOLDER) if request.url.path != ROOT else INDEX
    file = link.page_files.get(name)
    if file is None:
        raise ApiError(404, f"There is no {request.url.path[:200]}", kind=MISSING, code="unknown_url")
    return Reply(file.body, kind=file.kind, headers=HEADERS)


async def page_events(request: Request, link: EngineLink) -> ASGIApp:
    """Answer with live figures until the page is closed. Raises ApiError (503) if too many pages are open."""
    if link.feed.is_full:
        raise ApiError(503, "Too many pages are open", kind=SERVER, code="too_many_pages")
    return StreamingResponse(link.feed.frames(), headers={**STREAM_HEADERS, "x-content-type-options": "nosniff"})


async def page_bundle(request: Request, link: EngineLink) -> ASGIApp:
    """Answer a bundle with what the page shows of it; the bundle is not kept. Raises ApiError."""
    with link.room.body() as share:
        body = await read_body_of(request, ZIP, link.spec.limits, share)
        return JsonReply(await link.in_thread(lambda: _describe_bundle(body)))


def _describe_bundle(body: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        file.write(body)
        file.flush()
        try:
            bundle = read_small_bundle(Path(file.name))
        except UsageError as error:
            raise ApiError(400, f"The file {error.what}", code="not_a_bundle") from error
    written = datetime.fromisoformat(bundle.manifest.written)
    views = bundle_views(bundle)
    return {
        "written": bundle.manifest.written,
        "version": bundle.manifest.version,
        "engines": [now_json(view, written.timestamp()) for view in views],
        "history": {view.engine: history_json(view.points) for view in views},
    }
