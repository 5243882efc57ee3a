"""Middleware that checks access and limits before anything else. Every refusal is one line of JSON.

A page of any web site can make a browser post to this machine, and a DNS name can be pointed at it (rebinding). So the
Host must be an address or a known name, and the Origin, if there is one, this server. Bodies are counted while they
arrive, because the stated length proves nothing.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from audiolm_cli.errors import AudioLMError, TooLongError, explain
from audiolm_cli.server.work import BusyError, ClosingError

if TYPE_CHECKING:
    from audiolm_cli.command_line.arguments import ServerOptions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_SECONDS, IDLE_SECONDS = 60.0, 10.0  # timeouts for a whole body, and between two pieces of it
STALL_SECONDS = 60.0  # timeout for a client that reads nothing of its response
LINGER_SECONDS = 2.0  # for reading what a refused client still sends, so that it sees the refusal
ARRIVING = 64  # bodies received at the same time
RETRY_SECONDS = 5
OPEN = ("/", "/healthz")  # paths without a token; they disclose nothing


class RefusedError(Exception):
    """An HTTP status, and one line with the reason."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, headers


def refused(error: Exception) -> RefusedError:
    """An error as a client sees it. Details of unexpected errors are withheld."""
    retry = {"retry-after": str(RETRY_SECONDS)}
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, " ".join(error.detail.split()).lower(), **dict(error.headers or {}))
    if isinstance(error, BusyError):
        return RefusedError(429, "too many requests are waiting; try again", **retry)
    if isinstance(error, ClosingError):
        return RefusedError(503, "the server is shutting down", **retry)
    if isinstance(error, TooLongError):
        return RefusedError(413, str(error))
    if isinstance(error, AudioLMError):
        return RefusedError(400, str(error))
    if explain(error)[1].startswith("out of memory"):
        return RefusedError(503, "out of memory; a shorter request needs less", **retry)
    return RefusedError(500, f"unexpected {type(error).__name__}")


class Guard:
    """ASGI middleware that lets allowed requests through. `say` gets unexpected errors."""

    def __init__(self, app: App, server_options: ServerOptions, say: Callable[[str], None]):
        self.app, self.server_options, self.say, self.arriving = app, server_options, say, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope["app"] = self  # makes routes raise their refusals instead of answering
        exchange = Exchange(self, receive, send)
        try:
            headers = Headers(raw=scope["headers"])
            self.check(scope["path"], headers)
            exchange.check_length(headers)
            with exchange:
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return
        except Exception as error:
            found = refused(error)
            if found.status == 500:
                self.say(f"error: {explain(error)[1]}")
            if exchange.started:
                raise  # after the first byte, only closing the connection signals an error
            await exchange.refuse(found)

    def check(self, path: str, headers: Headers) -> None:
        """Raises RefusedError for a request without access."""
        host = headers.get("host", "")
        if not known_host(host, {self.server_options.host, *(self.server_options.allow_host or [])}):
            raise RefusedError(403, f"the host {host[:100]!a} is not allowed: --allow-host NAME allows it")
        for origin in headers.getlist("origin"):
            if origin.partition("://")[2].lower() == host.lower():
                continue
            raise RefusedError(403, f"pages of {origin[:100]!a} may not ask this server")
        if path not in OPEN and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(403, "pages of other sites may not ask this server")
        if self.server_options.token is not None and path not in OPEN:
            given = headers.get("authorization", "")
            expected = f"Bearer {self.server_options.token}"
            if not hmac.compare_digest(given.encode("latin-1"), expected.encode("latin-1")):
                raise RefusedError(
                    401, "needs the header Authorization: Bearer TOKEN", **{"www-authenticate": "Bearer"}
                )


def known_host(host: str, names: set[str]) -> bool:
    """Whether a Host is localhost, one of the names, or an IP address, which DNS cannot point elsewhere."""
    name = host.lower()
    if name.rpartition(":")[2].isdigit() and (name.startswith("[") or name.count(":") == 1):
        name = name.rpartition(":")[0]
    if name == "localhost" or name in {known.lower() for known in names}:
        return True
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    return False


class Exchange:
    """A request and its response, with limits of bytes and seconds; a context manager around receiving the body."""

    def __init__(self, guard: Guard, receive: Receive, send: Send):
        self.guard, self._receive, self._send = guard, receive, send
        self.started, self.complete, self.bytes, self.most = False, False, 0, guard.server_options.max_megabytes << 20
        self.until = time.monotonic() + BODY_SECONDS
        self.counted = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._arrived()

    def check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.most:
            raise self._too_large()
        self.complete = length == "0" and "transfer-encoding" not in headers
        if not self.complete:
            if self.guard.arriving >= ARRIVING:
                raise BusyError
            self.guard.arriving, self.counted = self.guard.arriving + 1, True

    def _arrived(self) -> None:
        self.guard.arriving, self.counted = self.guard.arriving - self.counted, False

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"a request has {self.guard.server_options.max_megabytes} MB at most")

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        try:
            with anyio.fail_after(min(IDLE_SECONDS, self.until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(408, "the request came too slowly") from None
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.most:
            raise self._too_large()
        if not message.get("more_body"):
            self.complete = True
            self._arrived()
        return message

    async def send(self, message: Message) -> None:
        self.started = True
        try:
            with anyio.fail_after(STALL_SECONDS):
                await self._send(message)
        except TimeoutError:
            raise ClientDisconnect from None

    async def refuse(self, error: RefusedError) -> None:
        """Responds with an error, and closes the connection if more of the request would arrive."""
        body = json.dumps({"error": str(error)}).encode() + b"\n"
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        if not self.complete:
            headers["connection"] = "close"
        pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        if not self.complete:
            with anyio.move_on_after(LINGER_SECONDS):
                while (await self._receive()).get("more_body"):
                    pass
        await self.send({"type": "http.response.body", "body": b""})
