"""The server as a process: it listens, and ends in order."""

from __future__ import annotations

import gc
import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from audiolm_cli.backend import Backend
from audiolm_cli.console import Console
from audiolm_cli.errors import OutputError
from audiolm_cli.server.app import app
from audiolm_cli.server.work import Workshop

if TYPE_CHECKING:
    import asyncio

    from audiolm_cli.command_line.arguments import Serving

HEAD_SECONDS = 10.0  # in which a connection brings the head of a request, or is closed some seconds later
GRACE_SECONDS = 30  # in which what has begun may end when the server shuts down
CONNECTIONS = 512  # more are answered with 503


class Connection(H11Protocol):
    """Closes itself when no request comes, and breaks off when what was closed is not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._before: object = self  # the request at the last look
        self._look()

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            self.transport.abort()
            return
        if idle and self.conn.their_state is h11.IDLE and self._before is self.cycle:
            self.transport.close()
        self._before = self.cycle
        self.loop.call_later(HEAD_SECONDS, self._look)


class Server(uvicorn.Server):
    """Lets what has begun end, and refuses the rest, from the first signal on."""

    def __init__(self, config: uvicorn.Config, workshop: Workshop):
        super().__init__(config)
        self.workshop = workshop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.workshop.refuse()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OutputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise OutputError(f"--host {host} --port {port}: cannot listen there: {error}") from None


def make(bundle: Backend, serving: Serving, console: Console) -> Server:
    """A server of a model, which does not run yet."""
    workshop = Workshop(serving.streams, serving.queue)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the console says what is to be said
    config = uvicorn.Config(
        app(bundle, serving, workshop, console.say), http=Connection, ws="none", lifespan="on", log_config=None,
        access_log=False, proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    return Server(config, workshop)


def run(bundle: Backend, serving: Serving, console: Console, listener: socket.socket) -> None:
    """Serves a model until Ctrl-C or SIGTERM; a second one ends what has begun, too."""
    server = make(bundle, serving, console)
    host, port = listener.getsockname()[:2]
    console.note(f"serves {bundle.config.name} at http://{f'[{host}]' if ':' in host else host}:{port} until Ctrl-C")
    gc.freeze()  # what is loaded stays, so that looking for garbage takes no time, and is done often
    gc.set_threshold(2000, 10, 10)
    try:
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):  # which it hands on when it is done
        if not server.should_exit:
            raise
    finally:
        server.workshop.close()
