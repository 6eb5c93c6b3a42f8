"""Limits what a client may send and how long it may take, and counts requests."""

import re
import time
from collections.abc import Set

import anyio
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_etegrec.serve.metrics import Metrics

BODY_BYTES = 256 * 1024
BODY_SECONDS = 10.0
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]{1,5})?")
_READ_BYTES = 8 * 2**20  # of one that is too large, before the connection is cut


class _TooLargeError(Exception):
    pass


class _GoneError(Exception):
    pass


class WholeBody:
    """Passes a request on when its body is complete; refuses one that is too large or too slow."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            with anyio.fail_after(BODY_SECONDS):
                body = await _body(scope, receive)
        except _TooLargeError:
            refusal = _refusal(413, f"body: larger than {BODY_BYTES // 1024} KiB")
            return await refusal(scope, receive, send)
        except TimeoutError:
            refusal = _refusal(408, f"body: not there after {BODY_SECONDS:g} s")
            return await refusal(scope, receive, send)
        except _GoneError:
            return None
        whole = [{"type": "http.request", "body": body}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return await self._app(scope, again, send)


class KnownHost:
    """Passes on requests for hosts of some names alone; others are answered with status 421.

    A page of any site can have its own name point to this machine, and its visitor's browser then
    sends the page's requests here (DNS rebinding); the name in ``Host`` stays that of the site.

    Args:
        names: in lower case, without ports, IPv6 addresses in brackets.
    """

    def __init__(self, app: ASGIApp, names: Set[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_known(scope):
            return await self._app(scope, receive, send)
        refusal = _refusal(421, "host: not a name of this server (see --allowed-hosts)")
        return await refusal(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"host"]
        found = _HOST.fullmatch(given[0].decode("latin-1").lower()) if len(given) == 1 else None
        return found is not None and found[1] in self._names


class Measured:
    """Counts requests by path and status, and their seconds.

    Args:
        paths: the paths that are counted apart.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: tuple[str, ...]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.perf_counter() - started)


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The body; one that is too large is read on for a while, or its sender would see no answer."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if int(length) > _READ_BYTES:  # the server has made sure that it is a number
        raise _TooLargeError
    body, size, more = bytearray(), 0, True
    while more and size <= _READ_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        part = message.get("body", b"")
        size += len(part)
        if size <= BODY_BYTES:
            body += part
        more = message.get("more_body", False)
    if size > BODY_BYTES:
        raise _TooLargeError
    return bytes(body)


def _refusal(status: int, text: str) -> JSONResponse:
    # The rest of the body, if any, is not read, so nothing can follow it.
    return JSONResponse({"error": text}, status, {"Connection": "close"})
