"""A hub of our own on 127.0.0.1, for the real client."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories, of which some are `gated`; the first `cuts` downloads of the file `cut` break off
    at three quarters."""

    def __init__(self, repositories: Mapping[str, Path], gated: tuple[str, ...] = ()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.gated, self.cut, self.cuts = dict(repositories), gated, "", 0
        self.requests: list[str] = []
        self.ranges: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(/.*)?", path)
        name, rest = (match[1], match[2] or "") if match else ("", "")
        if name in self.server.gated:
            self._answer({"error": "accept the terms"}, 403, {"X-Error-Code": "GatedRepo"})
        elif name not in self.server.repositories:
            self._answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            self._repository(name, self.server.repositories[name], path.startswith("/api/"), rest)

    def _repository(self, name: str, folder: Path, api: bool, rest: str) -> None:
        revision = "(main|v1|[0-9a-f]{40})"
        if not api and (match := re.fullmatch(rf"/resolve/{revision}/(.+)", rest)):
            self._file(folder / match[2])
        elif api and re.fullmatch(rf"(/revision/{revision})?", rest):
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            self._answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": files})
        elif api and re.fullmatch(rf"/tree/{revision}", rest):
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self._digest(f)}
                for f in sorted(folder.iterdir())
            ]
            self._answer(entries)
        else:
            self._answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})

    def _answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        data, status, headers = file.read_bytes(), 200, {"ETag": f'"{self._digest(file)}"', "X-Repo-Commit": COMMIT}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.server.ranges.append(f"{file.name} from {match[1]}")
            headers["Content-Range"] = f"bytes {match[1]}-{len(data) - 1}/{len(data)}"
            data, status = data[int(match[1]) :], 206
        if self.command == "GET" and file.name == self.server.cut and self.server.cuts:
            self.server.cuts -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) * 3 // 4])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self._send(data, status, headers)

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    @staticmethod
    def _digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving(repositories: Mapping[str, Path], gated: tuple[str, ...] = ()) -> Iterator[FakeHub]:
    server = FakeHub(repositories, gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def environment(hub: FakeHub, cache: Path) -> dict[str, str]:
    """What makes a command line ask this hub, and keep what comes in a folder of its own."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(cache),
        "PYTHONPATH": str(ROOT),
    }
