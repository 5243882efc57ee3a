"""Bundles from a hub: the real client against a hub of our own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from audiolm_cli.training.parts.assemble import write_sums
from tests.helpers import ROOT
from tests.helpers.bundles import write_bundle
from tests.helpers.processes import forked

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves one folder as the repository org/tiny; the first `cuts` downloads of the file `cut` break off half-way."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cut, self.cuts = folder, "", 0
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
        if match := re.fullmatch(r"/org/tiny/resolve/(main|v1|[0-9a-f]{40})/(.+)", path):
            self._file(self.server.folder / match[2])
        elif re.fullmatch(r"/api/models/org/tiny(/revision/(main|v1|[0-9a-f]{40}))?", path):
            files = [{"rfilename": file.name} for file in sorted(self.server.folder.iterdir())]
            self._answer({"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": files})
        elif re.fullmatch(r"/api/models/org/tiny/tree/(main|v1|[0-9a-f]{40})", path):
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self._digest(f)}
                for f in sorted(self.server.folder.iterdir())
            ]
            self._answer(entries)
        elif path.startswith("/api/models/org/tiny"):
            self._answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})

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
            self.wfile.write(data[: len(data) // 2])
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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = write_bundle(tmp_path / "served", in_int8=True)  # of version 2; `weights/speech` below may be of 1
    card = "---\nlicense: cc-by-4.0\nfigures: none, it is random\n---\n# tiny\nA card \x1b[31mwith colour.\n"
    (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("Attribution.\n")
    (folder / "example.ogg").write_bytes(b"a sound of the card")
    write_sums(folder)
    (folder / "weights.bin").write_bytes(b"what we never ask for")
    server = FakeHub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def audiolm(hub: FakeHub, tmp_path: Path):
    """Runs a command line in a fork, where the client reads its environment again; a new process takes far longer."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments: object, new: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        if not new:
            return forked(*arguments, cwd=tmp_path, env={**environment, **more}, forget="huggingface_hub")
        command = [sys.executable, "-m", "audiolm_cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_a_bundle_is_fetched_once_and_then_used_without_the_network(audiolm, hub: FakeHub, prompt: Path) -> None:
    result = audiolm("models", "pull", "org/tiny@v1", new=True)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert (folder / "coarse.safetensors").read_bytes() == (hub.folder / "coarse.safetensors").read_bytes()
    assert not (folder / "weights.bin").exists()
    hub.requests.clear()
    assert audiolm("models", "pull", "org/tiny@v1").stdout == result.stdout
    made = audiolm("continue", prompt, "-o", "a.wav", "-m", "org/tiny@v1", "--duration", "0.2", "--device", "cpu")
    assert (made.returncode, made.stdout) == (0, "a.wav\n"), made.stderr
    assert hub.requests == []
    listed = [json.loads(line) for line in audiolm("models", "list", "--json").stdout.splitlines()]
    (entry,) = (record for record in listed if record["place"] == "cached")
    assert entry["name"] == "org/tiny@v1"
    assert (entry["licence"], entry["figures"]) == ("cc-by-4.0", "none, it is random")
    shown = audiolm("models", "show", "org/tiny@v1").stdout
    assert "A card [31mwith colour." in shown
    assert "Attribution." in shown
    assert "org/tiny@v1: whole" in audiolm("models", "verify").stdout
    assert hub.requests == []


def test_offline_means_no_request(audiolm, hub: FakeHub, prompt: Path) -> None:
    for arguments, more in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        result = audiolm("models", "pull", "org/tiny", *arguments, **more)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "forbids to fetch it" in result.stderr
    result = audiolm("continue", prompt, "-o", "a.wav", "-m", "org/tiny", "--offline", "--seed", "1")
    assert result.returncode == 1
    assert "forbids to fetch it" in result.stderr
    assert hub.requests == []


def test_a_download_that_breaks_off_goes_on(audiolm, hub: FakeHub) -> None:
    """The embedded bundle: the client writes down what it has in pieces of 10 MB."""
    hub.folder, hub.cut, hub.cuts = ROOT / "weights" / "speech", "codec.safetensors", 1
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 0, result.stderr
    assert hub.ranges == ["codec.safetensors from 10485760"]


def test_what_has_come_is_not_fetched_again(audiolm, hub: FakeHub) -> None:
    hub.cut, hub.cuts = "coarse.safetensors", 1000
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("audiolm: error: org/tiny: could not be fetched (")
    assert "Traceback" not in result.stderr
    hub.cuts = 0
    hub.requests.clear()
    assert audiolm("models", "pull", "org/tiny").returncode == 0
    assert [r.rpartition("/")[2] for r in hub.requests if r.startswith("GET /org/")] == ["coarse.safetensors"]


def test_a_wrong_byte_is_noticed_and_fetched_again(audiolm, hub: FakeHub) -> None:
    file = hub.folder / "fine.safetensors"
    right = file.read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 1
    assert "fine.safetensors: missing, or not what SHA256SUMS says" in result.stderr
    assert audiolm("models", "verify", "org/tiny").returncode == 1
    file.write_bytes(right)
    assert audiolm("models", "pull", "org/tiny").returncode == 0
    assert audiolm("models", "verify", "org/tiny").returncode == 0


@pytest.mark.parametrize("harm", ["dimensions", "missing", "scales", "pickle", "header"])
def test_harmful_bundles_are_refused_in_one_line(audiolm, hub: FakeHub, prompt: Path, harm: str) -> None:
    config, file = hub.folder / "config.json", hub.folder / "coarse.safetensors"
    if harm == "dimensions":
        value = json.loads(config.read_text())
        value["coarse"].update(layers=96, width=16384, feedforward=65536)
        config.write_text(json.dumps(value))
    elif harm in ("missing", "scales"):
        tensors = load(file.read_bytes())
        if harm == "missing":
            del tensors["norm.weight"]
        else:
            tensors["ids.weight.scale"].fill_(torch.nan)
        save_file(tensors, file)
    elif harm == "pickle":
        torch.save(load(file.read_bytes()), file)
    else:
        header = json.dumps({"ids.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (hub.folder / "weights.bin").unlink()
    write_sums(hub.folder)
    for command in (["models", "verify"], ["continue", prompt, "-o", "a.wav", "--seed", "1", "-m"]):
        audiolm("models", "pull", "org/tiny")
        result = audiolm(*command, "org/tiny")
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("audiolm: error: ")
        assert "Traceback" not in result.stderr
        assert "config.json" in result.stderr or "coarse.safetensors" in result.stderr


def test_what_the_hub_does_not_have(audiolm, hub: FakeHub) -> None:
    for name, says in (("org/nothing", "no such repository"), ("org/tiny@v9", "no such revision")):
        result = audiolm("models", "pull", name)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert says in result.stderr
    assert audiolm("models", "pull", "tiny").returncode == 2
    shutil.rmtree(hub.folder)
