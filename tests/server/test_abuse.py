"""Who may not ask, asks too much, too slowly, or goes away: the server stays as it was for everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.native import decode
from audiolm_cli.server import app, asked, guard, run
from audiolm_cli.server.work import BusyError, Job, Workshop
from tests.helpers import ROOT
from tests.helpers.server import Served, serve
from tests.server.test_serve import refused, wav


def head(path: str = "/v1/continue", **headers: object) -> bytes:
    named = {"host": "127.0.0.1", "content-type": "audio/wav", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


@contextlib.contextmanager
def listening(served: Served, path: str) -> Any:
    """A client that has sent its request and may go away."""
    with socket.create_connection(("127.0.0.1", served.port), 60) as connection:
        connection.sendall(head(path, content_length=0))
        yield connection


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:80"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost.evil.example:8000"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another server on this machine
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "192.168.1.2"}, 200),  # nobody can point an address elsewhere
    ],
)
def test_only_this_page_and_programs_may_ask(served: Served, headers: dict[str, str], status: int) -> None:
    answer = served.ask("GET", "/v1/models", **headers)
    assert answer.status == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    if status == 403:
        refused(answer, 403, "allowed" if "host" in headers else "may not ask")
        refused(served.ask("POST", "/v1/generate", **headers), 403, "")


def test_hosts_can_be_allowed(tiny: Bundle) -> None:
    with serve(tiny, allow_host=["Voice.lan"]) as served:
        assert served.ask("GET", "/v1/models", host="voice.lan:8000").status == 200
        assert served.ask("GET", "/v1/models", host="other.lan").status == 403


def test_a_body_is_bounded_while_it_comes(served: Served) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    found = served.raw(head(transfer_encoding="chunked") + chunk * 17)  # without an end, and without a length
    assert b" 413 " in found.splitlines()[0]
    assert found.endswith(b'{"error": "a request has 1 MB at most"}\n')
    assert b"connection: close" in found
    begin = time.monotonic()
    found = served.raw(head(content_length=1 << 40))
    assert b" 413 " in found.splitlines()[0]
    assert time.monotonic() - begin < 10


def test_a_slow_body_is_given_up(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "IDLE_SECONDS", 0.2)
    found = served.raw(head(content_length=1000) + b"x" * 10)
    assert b" 408 " in found.splitlines()[0]
    assert b"too slowly" in found
    monkeypatch.setattr(guard, "IDLE_SECONDS", 10.0)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(head(content_length=10000))
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # drop by drop
            while time.monotonic() - begin < 5:
                connection.sendall(b"x")
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    assert b" 408 " in connection.recv(1000)
                    break
        assert time.monotonic() - begin < 4


def test_bodies_on_their_way_are_counted(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "ARRIVING", 1)
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(head(content_length=1000))
        served.until(lambda: served.guard.arriving == 1)
        answer = served.ask("POST", "/v1/continue?duration=0.2", wav(), content_type="audio/wav")
        refused(answer, 429, "too many")
    served.until(lambda: served.guard.arriving == 0)
    assert served.ask("POST", "/v1/continue?duration=0.2", wav(), content_type="audio/wav").status == 200


def test_a_connection_without_a_request_ends(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.2)
    assert served.raw(b"", timeout=10) == b""
    assert served.raw(b"GET / HTTP/1.1\r\nhost: 127", timeout=10) == b""


def test_who_goes_away_frees_the_place(tiny: Bundle) -> None:
    with serve(tiny, streams=1, queue=1) as served:
        with listening(served, "/v1/generate?duration=600&seed=1") as first:
            assert first.recv(12) == b"HTTP/1.1 200"
            with listening(served, "/v1/generate?duration=600&seed=1"):
                served.until(lambda: len(served.workshop.jobs) == 2)
                answer = served.ask("POST", "/v1/generate?duration=0.2")
                refused(answer, 429, "too many requests are waiting")
                assert int(answer.headers["retry-after"]) > 0
            served.until(lambda: len(served.workshop.jobs) == 1)  # who has only waited
        served.until(lambda: not served.workshop.jobs)
        assert served.ask("POST", "/v1/generate?duration=0.2").status == 200
        with listening(served, "/v1/generate?duration=600&seed=1&format=flac") as third:
            third.settimeout(0.01)  # before the first sound is there
        served.until(lambda: not served.workshop.jobs)


def test_who_reads_nothing_is_given_up(tiny: Bundle, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.setattr(guard, "STALL_SECONDS", 0.2)
    with serve(tiny, streams=1, queue=0) as served:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", served.port))
            connection.sendall(
                head("/v1/generate?duration=600&seed=1", content_length=0, accept="application/x-ndjson")
            )
            served.until(lambda: served.workshop.jobs)
            served.until(lambda: not served.workshop.jobs, 120)
        assert served.ask("POST", "/v1/generate?duration=0.2").status == 200
    assert capfd.readouterr().err == ""  # it is no defect of the server


def test_what_was_made_keeps_its_place_until_it_is_read() -> None:
    async def check() -> None:
        workshop = Workshop(streams=1, queue=0)
        job = workshop.begin(lambda job: iter([b"some", b"sound"]))
        assert job.future is not None
        await asyncio.wrap_future(job.future)
        with pytest.raises(BusyError):
            workshop.check()
        assert [data async for data in job.received()] == [b"some", b"sound"]
        workshop.check()
        workshop.close()

    asyncio.run(check())


def test_a_response_that_cannot_begin_ends_its_work() -> None:
    def endless(job: Job) -> Iterator[bytes]:
        while True:
            job.pause()
            time.sleep(0.001)

    async def send(message: Any) -> None:
        raise ClientDisconnect

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def check() -> None:
        workshop = Workshop(streams=1, queue=0)
        job = workshop.begin(endless)
        with pytest.raises(ClientDisconnect):
            await app.Streamed(job, job.received())({"type": "http"}, receive, send)
        assert job.future is not None
        await asyncio.wait_for(asyncio.wrap_future(job.future), 10)
        workshop.check()
        workshop.close()

    asyncio.run(check())


def test_uploads_that_wait_to_be_decoded_are_counted(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(asked, "WAITING", 0)
    answer = served.ask("POST", "/v1/continue?duration=0.2", wav(), content_type="audio/wav")
    refused(answer, 429, "too many requests are waiting")


def test_weights_are_read_before_the_first_request(tiny_bundle: Path) -> None:
    fresh = bundles.load(str(tiny_bundle), device="cpu")
    fresh.read()
    assert {"codec", "tokenizer", "semantic", "coarse", "fine", "detector"} <= vars(fresh).keys()


def test_what_is_given_up_leaves_no_memory(tiny: Bundle, monkeypatch: Any) -> None:
    assert tiny.semantic.native is not None
    live: list[int] = []
    post_init, library = decode.Session.__post_init__, tiny.semantic.native.library

    def counted(session: decode.Session) -> None:
        post_init(session)
        live.append(1)

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def audiolm_close(self, handle: object) -> None:
            live.pop()
            library.audiolm_close(handle)

    for stage in (tiny.semantic, tiny.coarse):
        monkeypatch.setattr(stage.native, "library", Counting())
    monkeypatch.setattr(decode.Session, "__post_init__", counted)
    streams = weakref.WeakSet[pipeline.Stream]()
    kept = pipeline.Stream.__init__

    def seen(stream: pipeline.Stream, *parts: Any) -> None:
        kept(stream, *parts)
        streams.add(stream)

    monkeypatch.setattr(pipeline.Stream, "__init__", seen)
    with serve(tiny, streams=2) as served:
        gc.disable()  # which would find it some day
        try:
            for _ in range(3):
                with listening(served, "/v1/generate?duration=600&seed=1") as client:
                    assert client.recv(12) == b"HTTP/1.1 200"
                served.until(lambda: not served.workshop.jobs)
            assert served.ask("POST", "/v1/generate?duration=0.2").status == 200
            served.until(lambda: not live and not streams, 10)
        finally:
            gc.enable()


def test_a_shutdown_lets_what_has_begun_end_and_refuses_the_rest(tiny: Bundle) -> None:
    with serve(tiny, streams=1, queue=4) as served:
        found: dict[str, Any] = {}

        def ask(name: str, path: str) -> None:
            found[name] = served.ask("POST", path)

        first = threading.Thread(target=ask, args=("first", "/v1/generate?duration=120&seed=1&format=s16le"))
        first.start()
        served.until(lambda: len(served.workshop.jobs) == 1)
        second = threading.Thread(target=ask, args=("second", "/v1/generate?duration=1"))
        second.start()
        served.until(lambda: len(served.workshop.jobs) == 2)
        served.server.handle_exit(signal.SIGTERM, None)
        first.join()
        second.join()
        assert len(found["first"].body) == 2 * 120 * 16000
        refused(found["second"], 503, "shutting down")
        assert found["second"].headers["retry-after"]


def test_an_unexpected_error_says_no_more_than_that(tiny: Bundle, monkeypatch: Any) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("audiolm_cli.pipeline.stream", broken)
    with serve(tiny) as served:
        refused(served.ask("POST", "/v1/generate"), 500, "unexpected RuntimeError")
        assert "secret" not in served.ask("POST", "/v1/generate").json["error"]
        assert not served.workshop.jobs


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "audiolm_cli", "serve", "-m", str(tiny_bundle), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "serves tiny at http://127.0.0.1:" in line
        port = int(line.partition("127.0.0.1:")[2].split()[0])
        served = Served(port, None)  # type: ignore[arg-type]
        assert served.ask("POST", "/v1/generate?duration=0.2").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_said(audiolm: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, said = audiolm("serve", "--port", taken.getsockname()[1])
    assert code == 1
    assert "cannot listen there" in said
