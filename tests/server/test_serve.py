"""The server answers with what the command line makes, and refuses what cannot be, in one line of JSON."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.command_line import cli
from audiolm_cli.command_line.arguments import ServerOptions
from audiolm_cli.errors import UsageError
from audiolm_cli.server.work import Job, Workshop
from tests.helpers import ROOT
from tests.helpers.server import Answer, Served, form, serve
from tests.test_pipeline import noise

HOW = "duration=0.8&seed=3"


def wav(seconds: float = 1.0, seed: int = 0) -> bytes:
    return files.encode(noise(seconds, seed), 16000, ".wav", {})[0]


def samples(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="int16")[0]


def refused(answer: Answer, status: int, said: str) -> None:
    assert answer.status == status, answer.body
    assert list(answer.json) == ["error"]
    assert said in answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert answer.headers["content-type"] == "application/json"


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: Any) -> dict[str, np.ndarray]:
    """What the command line makes."""
    folder = tmp_path_factory.mktemp("written")
    for n, name in enumerate(("prompt", "voice")):
        (folder / f"{name}.wav").write_bytes(wav(1.0, n))
    prompt, how = str(folder / "prompt.wav"), ["-m", str(tiny_bundle), "--seed", "3", "-q", "-o"]
    commands = {
        "continue": ["continue", prompt, "--duration", "0.8"],
        "new": ["continue", prompt, "--duration", "0.8", "--continuation-only", "--top-k", "20,10,5"],
        "generate": ["generate", "--duration", "0.8"],
        "resynth": ["resynth", prompt, "--speaker", str(folder / "voice.wav")],
    }
    for name, command in commands.items():
        assert cli.main([*command, *how, str(folder / f"{name}.flac")]) == 0
    return {name: soundfile.read(folder / f"{name}.flac", dtype="int16")[0] for name in commands}


def test_answers_are_what_the_command_line_makes(served: Served, written: dict[str, np.ndarray]) -> None:
    body, media = form(audio=wav(), duration="0.8", seed="3")
    answer = served.ask("POST", "/v1/continue", body, content_type=media)
    assert (answer.status, answer.headers["content-type"]) == (200, "audio/wav")
    assert (answer.headers["x-audiolm-seed"], answer.headers["x-audiolm-prompt-samples"]) == ("3", "16000")
    assert np.array_equal(samples(answer.body), written["continue"])
    with soundfile.SoundFile(io.BytesIO(answer.body)) as sound:
        assert '"digitalSourceType":"trainedAlgorithmicMedia"' in sound.comment
    path = f"/v1/continue?{HOW}&continuation-only&top-k=20,10,5&format=flac"
    answer = served.ask("POST", path, wav(), content_type="audio/wav")
    assert np.array_equal(samples(answer.body), written["new"])
    options = json.dumps({"duration": 0.8, "seed": 3})
    answer = served.ask("POST", "/v1/generate", options, content_type="application/json")
    assert np.array_equal(samples(answer.body), written["generate"])
    body, media = form(audio=wav(), speaker=wav(1.0, 1))
    answer = served.ask("POST", "/v1/resynth?seed=3&format=s16le", body, content_type=media)
    assert np.array_equal(np.frombuffer(answer.body, "<i2"), written["resynth"])


@pytest.mark.parametrize("threads", [1, 3])
def test_clients_at_the_same_time_get_the_same(
    tiny: Bundle, written: dict[str, np.ndarray], monkeypatch: Any, threads: int
) -> None:
    for slice in ("SLICE", "FIRST"):
        monkeypatch.setattr(f"audiolm_cli.server.work.{slice}", 0.0)  # takes turns at every report
    asked = {
        "continue": (f"/v1/continue?{HOW}", wav(), "audio/wav"),
        "generate": (f"/v1/generate?{HOW}", None, ""),
        "new": (f"/v1/continue?{HOW}&continuation-only=true&top-k=20,10,5", wav(), "application/octet-stream"),
    }
    with serve(tiny, streams=3, threads=threads) as served, ThreadPoolExecutor(6) as clients:

        def ask(name: str) -> Answer:
            path, body, media = asked[name]
            return served.ask("POST", path, body, **({"content_type": media} if media else {}))

        names = list(asked) * 2
        for name, answer in zip(names, clients.map(ask, names), strict=True):
            assert np.array_equal(samples(answer.body), written[name])
        assert not served.workshop.jobs


def test_as_many_work_at_a_time_as_there_are_threads() -> None:
    working, most, guard = 0, 0, threading.Lock()

    def work(job: Job) -> Iterator[bytes]:
        nonlocal working, most
        for _ in range(5):
            with guard:
                working += 1
                most = max(most, working)
            time.sleep(0.01)
            with guard:
                working -= 1
            job.pause()
        yield b"done"

    async def check() -> None:
        workshop = Workshop(streams=4, queue=0, at_once=2)
        received = [workshop.begin(work).received() for _ in range(4)]
        for each in received:
            assert [data async for data in each] == [b"done"]
        workshop.close()

    asyncio.run(check())
    assert most == 2


def test_who_comes_later_and_asks_for_less_is_served_while_others_run(served: Served, monkeypatch: Any) -> None:
    paths = {
        name: f"/v1/generate?duration={seconds}&seed={seconds}&format=s16le"
        for name, seconds in (("long", 20), ("short", 1))
    }
    alone = {name: served.ask("POST", path).body for name, path in paths.items()}
    assert len(alone["long"]) == 2 * 20 * 16000
    monkeypatch.setattr("audiolm_cli.server.work.SLICE", 0.01)
    with contextlib.closing(served.connect()) as connection:
        connection.request("POST", paths["long"])
        response = connection.getresponse()
        beginning = response.read(1000)
        assert served.ask("POST", paths["short"]).body == alone["short"]
        (still,) = served.workshop.jobs
        assert still.working
        assert beginning + response.read() == alone["long"]


def test_tokens_and_timings_come_as_json(served: Served, written: dict[str, np.ndarray]) -> None:
    answer = served.ask("POST", f"/v1/continue?{HOW}", wav(), content_type="audio/wav", accept="application/json")
    found = answer.json
    assert np.array_equal(samples(base64.b64decode(found["wav"])), written["continue"])
    assert (found["seed"], found["sample_rate"], found["samples"], found["prompt_samples"]) == (3, 16000, 28800, 16000)
    assert len(found["semantic"]) == 45
    assert np.array(found["codes"]).shape == (12, 90)
    assert found["tokens_start"] == 0
    assert found["stages"]["coarse"]["tokens"] > 0
    lines_answer = served.ask(
        "POST", f"/v1/continue?{HOW}", wav(), content_type="audio/wav", accept="application/x-ndjson"
    )
    first, *pieces, last = [json.loads(line) for line in lines_answer.body.splitlines()]
    assert (first["seed"], first["samples"]) == (3, 28800)
    assert last["done"]
    assert last["stages"].keys() == {"tokenize", "semantic", "coarse", "fine", "decode"}
    sound = np.frombuffer(b"".join(base64.b64decode(piece["s16le"]) for piece in pieces), "<i2")
    assert np.array_equal(sound, written["continue"])
    assert [token for piece in pieces for token in piece["semantic"]] == found["semantic"]
    assert np.concatenate([np.array(piece["codes"]) for piece in pieces], 1).tolist() == found["codes"]


def test_sound_comes_while_it_is_made(served: Served) -> None:
    connection = served.connect()
    connection.request("POST", "/v1/generate?duration=20&seed=1&format=s16le")
    response = connection.getresponse()
    beginning = response.read(1000)
    assert served.workshop.jobs
    rest = response.read()
    assert len(beginning) + len(rest) == 2 * 20 * 16000
    connection.close()


def test_what_was_made_is_detected(served: Served) -> None:
    made = served.ask("POST", "/v1/generate?duration=4&seed=1").body
    body, media = form(audio=made)
    found = served.ask("POST", "/v1/detect", body, content_type=media).json
    assert (found["path"], found["classifier"]) == (None, "tiny")
    assert found["metadata"]["comment"]["seed"] == 1
    refused(served.ask("POST", "/v1/detect?seed=1", made, content_type="audio/wav"), 400, "no options")


def test_it_says_what_there_is(served: Served) -> None:
    found = served.ask("GET", "/v1/models").json
    assert found["models"][0]["name"] == "tiny"
    assert found["models"][0]["can"] == ["continue", "generate", "resynth", "detect"]
    assert "temperature" in found["options"]["continue"]
    assert not {"input", "output", "plot", "num-samples", "speaker"} & {*found["options"]["resynth"]}
    assert [found["defaults"][name].get("duration") for name in ("continue", "generate", "resynth")] == [7, 10, None]
    assert found["defaults"]["continue"]["temperature"] == [0.9, 0.9, 0.7]
    assert "seed" not in found["defaults"]["generate"]  # random
    assert all(found["defaults"][name].keys() <= set(found["options"][name]) for name in found["options"])
    assert "max-pause" not in found["options"]["generate"]  # this model does not know its pauses
    assert found["limits"]["max_seconds"] == 20
    assert served.ask("GET", "/healthz").json == {"status": "ok", "token": False}
    page = served.ask("GET", "/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert not [name for name in page.headers if name.startswith("access-control")]


def test_pauses_are_limited(pausing: Bundle, served: Served) -> None:
    with serve(pausing) as limited:
        found = limited.ask("GET", "/v1/models").json
        assert [found["defaults"][name].get("max-pause") for name in ("continue", "generate", "resynth")] == [
            *(1.5, 1.5),
            None,
        ]
        made = {
            pause: limited.ask("POST", f"/v1/generate?{HOW}&max-pause={pause}").body for pause in ("0.1", "1.5", "inf")
        }
        assert limited.ask("POST", f"/v1/generate?{HOW}").body == made["1.5"]
    assert not np.array_equal(samples(made["0.1"]), samples(made["inf"]))
    assert np.array_equal(samples(made["inf"]), samples(served.ask("POST", f"/v1/generate?{HOW}").body))


@pytest.mark.parametrize(
    ("path", "body", "media", "status", "said"),
    [
        ("/v1/continue", b"", "audio/wav", 400, "there is no sound"),
        ("/v1/continue", b"nonsense" * 100, "audio/wav", 400, "audio: not audio"),
        ("/v1/continue", wav(0.01), "audio/wav", 400, "audio: shorter than one token"),
        ("/v1/continue", wav(25), "audio/wav", 413, "audio: longer than 20 seconds"),
        ("/v1/continue", b"x" * (1 << 20) + b"x", "audio/wav", 413, "1 MB at most"),
        ("/v1/continue", b"duration=2", "application/x-www-form-urlencoded", 415, "is not accepted; send audio/*"),
        ("/v1/continue", b"hello", "text/plain", 415, "is not accepted"),
        ("/v1/generate", wav(), "audio/wav", 415, "send application/json"),
        ("/v1/generate", b"{", "application/json", 400, "not JSON"),
        ("/v1/generate", b"[" * 100000, "application/json", 400, "not JSON"),
        ("/v1/generate", b"[]", "application/json", 400, "not a JSON object"),
        ("/v1/generate", b" " * 300_000, "application/json", 413, "options take 256 kB at most"),
        ("/v1/generate", b'{"seed": null}', "application/json", 400, "seed: must not be null"),
        ("/v1/generate", b"--x", "multipart/form-data; boundary=y", 400, ""),
        ("/v1/generate?duration=-1", b"", "", 400, "duration: must be above 0"),
        ("/v1/generate?duration=0.001", b"", "", 400, "duration: must be at least"),
        ("/v1/generate?duration=inf", b"", "", 400, "duration: at most 20 seconds"),
        ("/v1/generate?duration=21", b"", "", 400, "duration: at most 20 seconds"),
        ("/v1/generate?seed=1&seed=2", b"", "", 400, "seed: is given twice"),
        ("/v1/generate?until-end=yes", b"", "", 400, "until-end: must be true or false"),
        ("/v1/generate?max-pause=0", b"", "", 400, "max-pause: must be above 0"),
        ("/v1/generate?max-pause=1", b"", "", 400, "max-pause: tiny has no list of the tokens"),
        ("/v1/resynth?max-pause=1", wav(), "audio/wav", 400, "max-pause: not an option here"),
        ("/v1/generate?format=mp3", b"", "", 400, "format: must be wav"),
        ("/v1/generate?output=/tmp/a.wav", b"", "", 400, "output: not an option here"),
        ("/v1/generate?plot=/tmp/a.png", b"", "", 400, "plot: not an option here"),
        ("/v1/generate?num-samples=3", b"", "", 400, "num-samples: not an option here"),
        ("/v1/continue?input=/etc/passwd", b"", "", 400, "input: not an option here"),
        ("/v1/resynth?speaker=/etc/passwd", wav(), "audio/wav", 400, "speaker: not an option here"),
        ("/v1/resynth?audio=/etc/passwd", b"", "", 400, "audio: not an option here"),
        ("/v1/nothing", b"", "", 404, "not found"),
        ("/v1/models", b"", "", 405, "not allowed"),
        ("/../../etc/passwd", b"", "", 404, "not found"),
    ],
)
def test_what_cannot_be_is_refused(served: Served, path: str, body: bytes, media: str, status: int, said: str) -> None:
    headers = {"content_type": media} if media else {}
    refused(served.ask("POST", path, body or None, **headers), status, said)
    assert not served.workshop.jobs


def test_forms_bring_no_other_files(served: Served) -> None:
    body, media = form(speaker=wav(), audio=wav())
    refused(served.ask("POST", "/v1/continue", body, content_type=media), 400, "speaker: no file of that name")
    body, media = form(audio=wav(), speaker="/etc/passwd")
    refused(served.ask("POST", "/v1/resynth", body, content_type=media), 400, "speaker: not an option here")
    body, media = form(audio="/etc/passwd")
    refused(served.ask("POST", "/v1/continue", body, content_type=media), 400, "audio: not an option here")
    body, media = form(audio=wav(), speaker=files.encode(np.zeros(16000, np.float32), 16000, ".wav", {})[0])
    refused(served.ask("POST", "/v1/resynth", body, content_type=media), 400, "the reference is silent")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
def test_playlists_are_not_followed(served: Served, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(wav())
    playlist = f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n".encode()
    refused(served.ask("POST", "/v1/continue", playlist, content_type="audio/mpegurl"), 400, "audio: not audio")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
def test_the_examples_with_curl_run(served: Served, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    examples = [line.strip() for line in text.splitlines() if line.startswith("    curl ") and "aplay" not in line]
    assert len(examples) == 5
    for number, name in enumerate(("prompt", "talk", "reference")):
        (tmp_path / f"{name}.wav").write_bytes(wav(1.0, number))
    for line in examples:
        line = line.replace("localhost:8000", f"localhost:{served.port}").replace("curl", "curl -sf", 1)
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == 0, (line, done.stderr)
    assert json.loads(done.stdout)["metadata"]["comment"]["seed"] == 1
    for name, seconds in (("out.wav", 8.0), ("out.flac", 8.0), ("new.wav", 4.0), ("same-words.wav", 1.0)):
        assert soundfile.info(tmp_path / name).duration == seconds


def test_a_host_for_others_needs_a_token() -> None:
    with pytest.raises(UsageError, match="which needs --token"):
        ServerOptions(host="0.0.0.0")
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        ServerOptions(host=host)
    assert cli.main(["serve", "--host", "0.0.0.0"]) == 2
    assert cli.main(["serve", "--token", "short"]) == 2


def test_with_a_token_only_those_who_know_it_may_ask(tiny: Bundle) -> None:
    with serve(tiny, token="a-token-of-some-length") as served:
        for headers in (
            {},
            {"authorization": "Bearer a-token-of-some-lengtj"},
            {"authorization": "a-token-of-some-length"},
        ):
            answer = served.ask("POST", "/v1/generate?duration=0.2", **headers)
            refused(answer, 401, "Authorization: Bearer")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert served.ask("GET", "/v1/models", **headers).status == 401
        known = {"authorization": "Bearer a-token-of-some-length"}
        assert served.ask("POST", "/v1/generate?duration=0.2", **known).status == 200
        assert served.ask("GET", "/healthz").json["token"] is True
        assert served.ask("GET", "/").status == 200
