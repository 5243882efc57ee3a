"""A server of a model on loopback, in this process, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from audiolm_cli.backend import Backend
from audiolm_cli.command_line.arguments import ServerOptions
from audiolm_cli.console import Console
from audiolm_cli.server import run as server


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    port: int
    server: server.Server

    @property
    def workshop(self) -> Any:
        return self.server.workshop

    @property
    def guard(self) -> Any:
        return self.server.config.app

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`headers` have _ for -."""
        with contextlib.closing(self.connect()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def raw(self, data: bytes, timeout: float = 60) -> bytes:
        """All that comes back for these bytes, until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            connection.sendall(data)
            found = b""
            with contextlib.suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    found += more
            return found

    def until(self, condition: Any, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


def form(**parts: bytes | str) -> tuple[bytes, str]:
    """A multipart body and its type: files as bytes, options as text."""
    edge = "edge-of-a-part"
    body = b""
    for name, value in parts.items():
        file = '; filename="/etc/passwd"' if isinstance(value, bytes) else ""
        head = f'--{edge}\r\ncontent-disposition: form-data; name="{name.replace("_", "-")}"{file}\r\n\r\n'
        body += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


@contextlib.contextmanager
def serve(bundle: Backend, **options: Any) -> Iterator[Served]:
    listener = server.listen("127.0.0.1", 0)
    made = server.make(bundle, ServerOptions(**options), Console(quiet=True))
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    served = Served(listener.getsockname()[1], made)
    served.until(lambda: made.started)
    try:
        yield served
    finally:
        made.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()
