"""The server's routes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from audiolm_cli import __version__, models
from audiolm_cli.audio.encoding import FORMATS
from audiolm_cli.backend import Backend
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.errors import UsageError
from audiolm_cli.provenance import provenance, watermark
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from audiolm_cli.server import asked, outputs
from audiolm_cli.server.guard import Guard
from audiolm_cli.server.work import Job, Workshop

if TYPE_CHECKING:
    from audiolm_cli.command_line.arguments import ServerOptions

PAGE = Path(__file__).with_name("page.html")
SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
REQUESTS: dict[str, type[outputs.Sampled]] = {
    "continue": ContinueRequest,
    "generate": GenerateRequest,
    "resynth": ResynthRequest,
}
UPLOADS = {"continue": ("audio",), "generate": (), "resynth": ("audio", "speaker")}  # sounds, by command


class Service:
    """A loaded model and the workshop that runs its requests."""

    def __init__(self, bundle: Backend, server_options: ServerOptions, workshop: Workshop):
        self.bundle, self.workshop, self.most = bundle, workshop, float(server_options.max_seconds)
        self.limits = {"max_seconds": server_options.max_seconds, "max_megabytes": server_options.max_megabytes}
        self.reader = asked.Reader(self.most)
        self.token = server_options.token is not None
        self.can = [*REQUESTS, "detect"] if isinstance(bundle, Bundle) else list(models.SERVED)

    async def sampled(self, http: Http, command: str) -> Response:
        self._check(command)
        request_class, spec = REQUESTS[command], self.bundle.config.tokens
        async with asked.asked(http, UPLOADS[command]) as given:
            format = asked.format_of(given.options, spec.sample_rate)
            request: outputs.Sampled = asked.request(request_class, given.options, self.most)
            request.check(self.bundle.config)
            if UPLOADS[command] and "audio" not in given.sounds:
                raise UsageError("there is no sound: send it as the body, or as the file `audio` of a form")
            sounds = {name: await self.reader.samples(given, name, spec) for name in given.sounds}
        output = outputs.Output(self.bundle, request, sounds.get("audio"), sounds.get("speaker"))
        answer, media = outputs.answer(http.headers.get("accept", ""), format)
        headers = {"x-audiolm-seed": str(request.seed), "x-audiolm-prompt-samples": str(output.kept)}
        return await self._answered(http, functools.partial(answer, output), media, headers)

    async def detect(self, http: Http) -> Response:
        self._check("detect")
        async with asked.asked(http, ("audio",)) as given:
            if given.options:
                raise UsageError(f"{next(iter(given.options))[:100]}: detect takes no options here")
            if "audio" not in given.sounds:
                raise UsageError("there is no sound: send it as the body, or as the file `audio` of a form")
            recording = await self.reader.read(given.sounds["audio"], "audio", watermark.RATE)

        def found(job: Job) -> Iterator[bytes]:
            def pause(*_: object) -> None:
                job.pause()

            bundle = self.bundle
            assert isinstance(bundle, Bundle)
            yield (json.dumps(provenance.examine(recording, None, lambda maker: bundle, pause)).encode() + b"\n")

        return await self._answered(http, found, "application/json", {})

    def _check(self, command: str) -> None:
        """Raises the errors that are known before the body is read."""
        self.workshop.check()
        if command not in self.can:
            raise models.refusal(command, self.bundle.config.name)

    async def _answered(
        self, http: Http, work: Callable[[Job], Iterator[bytes]], media: str, headers: dict[str, str]
    ) -> Response:
        """The response, once its first bytes are ready: until then it can still become an error."""
        job = self.workshop.begin(work)
        received = job.received()
        first, gone = asyncio.ensure_future(anext(received)), asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait((first, gone), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise ClientDisconnect
            beginning = first.result()
        except BaseException:
            job.drop()
            raise
        finally:
            first.cancel()
            gone.cancel()

        async def all_of_it() -> AsyncIterator[bytes]:
            yield beginning
            async for data in received:
                yield data

        return Streamed(job, all_of_it(), media_type=media, headers={**SAFE, **headers})

    async def models(self, http: Http) -> Response:
        config, spec = self.bundle.config, self.bundle.config.tokens
        model = {
            "name": config.name,
            "identity": self.bundle.identity,
            "revision": self.bundle.revision or None,
            "kernel": self.bundle.kernel,
            "can": self.can,
            "sample_rate": spec.sample_rate,
            "samples_per_semantic": spec.samples_per_semantic,
            "samples_per_frame": spec.samples_per_frame,
            "semantic_vocabulary": spec.semantic_vocabulary,
            "codebook_size": spec.codebook_size,
            "coarse": spec.coarse,
            "quantizers": config.sampled_quantizers,
            "prompt_seconds": config.prompt_seconds,
            "sampling": vars(config.sampling),
        }
        kinds = {name: kind for name, kind in REQUESTS.items() if name in self.can}
        limits = {**self.limits, "formats": list(FORMATS)}
        found = {
            "version": __version__,
            "models": [model],
            "options": {name: asked.options_for(kind, config) for name, kind in kinds.items()},
            "defaults": {name: asked.defaults_for(kind, config) for name, kind in kinds.items()},
            "limits": limits,
        }
        return JSONResponse(found, headers=SAFE)

    async def health(self, http: Http) -> Response:
        return JSONResponse({"status": "ok", "token": self.token}, headers=SAFE)


class Streamed(StreamingResponse):
    """A job's bytes. However the response ends, even before it begins, nobody reads them afterwards."""

    def __init__(self, job: Job, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.drop()


async def _gone(http: Http) -> None:
    """Returns when the client has gone away."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _page() -> Response:
    """The page. Its content security policy allows its own script and requests to this server, and nothing else."""
    text = PAGE.read_bytes()

    def digest(tag: bytes) -> str:
        (inside,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), text, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; connect-src 'self'; "
        "img-src 'self' data: blob:; media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return Response(text, media_type="text/html", headers={**SAFE, "content-security-policy": policy})


def app(bundle: Backend, server_options: ServerOptions, workshop: Workshop, say: Callable[[str], None]) -> Guard:
    """The ASGI application that serves a loaded model."""
    service = Service(bundle, server_options, workshop)

    def posted(command: str) -> Callable[[Http], Awaitable[Response]]:
        async def endpoint(http: Http) -> Response:
            return await service.sampled(http, command)

        return endpoint

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        workshop.close()

    async def page(http: Http) -> Response:
        return shown

    shown = _page()
    routes = [Route(f"/v1/{command}", posted(command), methods=["POST"]) for command in REQUESTS]
    routes += [
        Route("/v1/detect", service.detect, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/healthz", service.health),
        Route("/", page),
    ]
    return Guard(Router(routes, redirect_slashes=False, lifespan=lifespan), server_options, say)
