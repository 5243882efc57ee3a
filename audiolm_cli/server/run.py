"""The server process: listens, and shuts down gracefully."""

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

    from audiolm_cli.command_line.arguments import ServerOptions

HEAD_SECONDS = 10.0  # timeout for the head of a request; connections are closed within seconds after it
GRACE_SECONDS = 30  # for requests in progress when the server shuts down
CONNECTIONS = 512  # more are answered with 503


class Connection(H11Protocol):
    """Closes itself if no request comes, and aborts if the client does not read the rest after closing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._before: object = self  # the request at the last check
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
    """From the first signal on, finishes the requests in progress and refuses new ones."""

    def __init__(self, config: uvicorn.Config, workshop: Workshop):
        super().__init__(config)
        self.workshop = workshop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.workshop.refuse()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OutputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise OutputError(f"--host {host} --port {port}: cannot listen there: {error}") from None


def make(bundle: Backend, server_options: ServerOptions, console: Console) -> Server:
    """A server for a model, not yet running."""
    # torch's engine uses all threads, and its buffers, for one output; the kernel uses one thread
    workshop = Workshop(
        server_options.streams, server_options.queue, server_options.threads if bundle.kernel == "native" else 1
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the console reports instead
    config = uvicorn.Config(
        app(bundle, server_options, workshop, console.say), http=Connection, ws="none", lifespan="on", log_config=None,
        access_log=False, proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    return Server(config, workshop)


def run(bundle: Backend, server_options: ServerOptions, console: Console, listener: socket.socket) -> None:
    """Serves a model until Ctrl-C or SIGTERM; a second signal also ends the requests in progress."""
    server = make(bundle, server_options, console)
    host, port = listener.getsockname()[:2]
    console.note(f"serves {bundle.config.name} at http://{f'[{host}]' if ':' in host else host}:{port} until Ctrl-C")
    gc.freeze()  # the loaded model stays: collections skip it, so they are fast and can be frequent
    gc.set_threshold(2000, 10, 10)
    try:
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):  # uvicorn raises the signal again at the end
        if not server.should_exit:
            raise
    finally:
        server.workshop.close()
