"""The ASGI application: paths, keys, and errors in the shape of OpenAI's."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from prometheus_client.core import Metric
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ...errors import EngineError, ExpertFlowError
from ..metrics.collector import EXPOSITION, engine_metrics
from ..openai.bodies import DetokenizeBody, TokenizeBody
from ..openai.endpoints import ENDPOINTS
from ..openai.errors import MISSING, SERVER, ApiError, to_api_error
from ..openai.models import list_models, show_model
from ..openai.openapi import OPEN_PATHS, describe
from ..openai.reading import read_body
from ..openai.tokens import detokenize, tokenize, tokenizer_info
from .counters import GONE, server_exposition
from .engine_link import EngineLink
from .generation import generate
from .page import BUNDLE, EVENTS, FILES, ROOT, page_bundle, page_events, page_file, route_of
from .replies import ErrorReply, JsonReply, Reply, read_json_body

MODELS = "/v1/models"
SNAPSHOT_S = 1.0
Answer = Callable[[Request, EngineLink], Awaitable[ASGIApp]]


class Application:
    """Answers requests; counts replies; turns every error into one that clients read."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._digests = [_digest(key.encode()) for key in link.spec.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request, reply = Request(scope, receive), _Sent(send)
        name = _route_name(scope["path"])
        try:
            await self._answer(request, reply, name)
        except ClientDisconnect:
            reply.status = GONE
        except ApiError as error:
            await self._send_error(request, reply, error)
        except ExpertFlowError as error:
            await self._send_error(request, reply, to_api_error(error))
        except Exception:  # noqa: BLE001 - the boundary of a request: the client gets an answer, the log the traceback
            logging.getLogger(__name__).exception("a request failed")
            error = ApiError(500, "Internal error; the server's output has it", kind=SERVER, code="internal")
            await self._send_error(request, reply, error)
        finally:
            self._link.counters.replies[name or "other", reply.status] += 1

    async def _answer(self, request: Request, send: _Sent, name: str) -> None:
        if not name:
            what = f"There is no {request.url.path[:200]}"
            raise ApiError(404, what, kind=MISSING, code="unknown_url")
        if name not in OPEN_PATHS:
            self._check_key(request)
        method = "POST" if name in _POSTS or name in ENDPOINTS else "GET"
        if request.method != method and (method, request.method) != ("GET", "HEAD"):
            raise ApiError(405, f"{name} takes {method}", code="method_not_allowed")
        if name in ENDPOINTS:
            await generate(request, send, self._link, name)
            return
        reply = await (_POSTS | _GETS)[name](request, self._link)
        await reply(request.scope, request.receive, send)

    async def _send_error(self, request: Request, send: _Sent, error: ApiError) -> None:
        if send.status:  # the reply has begun: all that is left is to cut it off
            logging.getLogger(__name__).warning("a reply was cut off: %s", error.message)
            return
        headers = {} if error.status in (400, 404) else {"connection": "close"}
        if error.status in (429, 503):
            headers["retry-after"] = str(self._link.retry_s)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status == 405:
            headers["allow"] = error.message.rpartition(" ")[2]
        await ErrorReply(error, headers)(request.scope, request.receive, send)

    def _check_key(self, request: Request) -> None:
        """Raise ApiError (401) unless one of the keys was sent; takes the same time whichever is wrong."""
        if not self._digests:
            return
        sent = request.headers.getlist("authorization")
        scheme, _, key = (sent[0] if len(sent) == 1 else "").partition(" ")
        digest = _digest(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            what = "Send a key of this server once, as Authorization: Bearer KEY"
            raise ApiError(401, what, kind="authentication_error", code="invalid_api_key")


class _Sent:
    """A `send` that remembers the status; 0: nothing was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _route_name(path: str) -> str:
    """Return the path without what varies; empty for one that does not exist."""
    if path.startswith(MODELS + "/"):
        return MODELS + "/{model}"
    return path if path in ENDPOINTS or path in _GETS or path in _POSTS else route_of(path)


async def _health(request: Request, link: EngineLink) -> ASGIApp:
    """Answer 200 while the server runs and the engine loads or runs; 503 once it has ended."""
    if (error := link.error) is not None:
        raise to_api_error(error)
    return JsonReply({"status": "ok"})


async def _ready(request: Request, link: EngineLink) -> ASGIApp:
    """Answer 200 when requests can be answered; before, 503 with the phase of the start and its percent."""
    if link.is_ready:
        return JsonReply({"status": "ready", "model": link.model.name})
    if (loading := link.loading) is None or link.error is not None:
        raise to_api_error(link.error) if link.error else ApiError(503, "The engine is not ready", kind=SERVER)
    content = {"status": "loading", "phase": loading.phase, "percent": loading.percent}
    return JsonReply(content, status=503, headers={"retry-after": "1"})


async def _version(request: Request, link: EngineLink) -> ASGIApp:
    return JsonReply({"version": __version__})


async def _metrics(request: Request, link: EngineLink) -> ASGIApp:
    """Answer with what is known: an engine that gives no snapshot in time has no metrics, the server has."""
    return Reply(server_exposition(link.counters, await _metrics_behind(link)), kind=EXPOSITION)


async def _metrics_behind(link: EngineLink) -> Iterable[Metric]:
    """Return the metrics of the engine, or of the cluster whose front this is."""
    if link.cluster_metrics is not None:
        return link.cluster_metrics()
    try:
        return engine_metrics(await link.client.stats(SNAPSHOT_S) if link.is_ready else None)
    except EngineError:
        return engine_metrics(None)


async def _openapi(request: Request, link: EngineLink) -> ASGIApp:
    return JsonReply(describe(bool(link.spec.keys)))


async def _models(request: Request, link: EngineLink) -> ASGIApp:
    return JsonReply(list_models(link.model))


async def _model(request: Request, link: EngineLink) -> ASGIApp:
    return JsonReply(show_model(link.model, request.url.path.removeprefix(MODELS + "/")))


async def _tokenizer_info(request: Request, link: EngineLink) -> ASGIApp:
    return JsonReply(tokenizer_info(link.model))


async def _tokenize(request: Request, link: EngineLink) -> ASGIApp:
    return await _translate(request, link, TokenizeBody, tokenize)


async def _detokenize(request: Request, link: EngineLink) -> ASGIApp:
    return await _translate(request, link, DetokenizeBody, detokenize)


async def _translate(
    request: Request, link: EngineLink, kind: type[msgspec.Struct], work: Callable[[Any, Any], msgspec.Struct]
) -> ASGIApp:
    """Answer a body by a function of it and the model, in a thread."""
    with link.room.body() as share:
        body, model = await read_json_body(request, link.spec.limits, share), link.model
        return JsonReply(await link.in_thread(lambda: work(read_body(body, kind)[0], model)))


_GETS: dict[str, Answer] = {
    "/health": _health,
    "/ready": _ready,
    "/version": _version,
    "/metrics": _metrics,
    "/openapi.json": _openapi,
    MODELS: _models,
    MODELS + "/{model}": _model,
    "/tokenizer_info": _tokenizer_info,
    ROOT: page_file,
    FILES: page_file,
    EVENTS: page_events,
}
_POSTS: dict[str, Answer] = {"/tokenize": _tokenize, "/detokenize": _detokenize, BUNDLE: page_bundle}
