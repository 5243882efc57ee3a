"""Fixtures for all tests; none needs the network, a GPU or recordings from outside the repository."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli.config import Sampling, TokenSpec
from audiolm_cli.errors import InputError
from tests.helpers.kernels import best, library  # noqa: F401

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a busy machine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "prompt.flac"

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
# What libsndfile cannot read and ffmpeg writes; options for it, where a suffix does not say all.
FFMPEG_FORMATS = {
    "m4a": "",
    "mp4": "-f lavfi -i color=s=16x16:d=1 -map 0:a -map 1:v -c:v mpeg4",  # whose first stream is a picture
    "aac": "",
    "mov": "-c:a alac",
    "webm": "-c:a libopus",
    "mka": "-c:a ac3",
    "wma": "",
    "flv": "-c:a aac",
    "ts": "-c:a aac",
    "avi": "-c:a mp2",
    "wv": "",
    "tta": "",
    "caf": "-c:a alac",
    "dts": "-c:a dca -strict -2",
    "spx": "-c:a libspeex",
    "sox": "",
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("AUDIOLM_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # not the user's


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    """float32 [T]: a soft chord."""
    time = np.arange(round(seconds * rate)) / rate
    return np.sum([0.1 * np.sin(2 * np.pi * pitch * time) for pitch in (220, 331, 447)], axis=0).astype(np.float32)


def recorded_with_ffmpeg(folder: Path, suffix: str, samples: np.ndarray, *options: str) -> Path:
    """A file of `samples` (16 kHz) in one of FFMPEG_FORMATS; it is not there where this ffmpeg cannot write it."""
    target, source = folder / f"a.{suffix}", folder / "source.wav"
    soundfile.write(source, samples, 16000)
    command = f"ffmpeg -v error -y -i {source} {FFMPEG_FORMATS[suffix]}".split()
    result = subprocess.run([*command, *options, target], stdin=subprocess.DEVNULL, capture_output=True)
    source.unlink()
    if result.returncode:
        target.unlink(missing_ok=True)
    return target


@pytest.fixture
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A PATH with nothing in it."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A WAV file of one second."""
    path = tmp_path / "prompt.wav"
    soundfile.write(path, tone(1.0), 16000)
    return path


@pytest.fixture
def audiolm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in an empty folder: -> exit code, stdout, stderr."""
    from audiolm_cli.command_line import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of random weights, small enough to run in a test."""
    from tests.helpers.bundles import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@dataclass
class FakePipeline:
    """Stands in for bundle.py and pipeline.py: the new audio is a constant that says how it was asked for."""

    level: float = 0.25
    surprise: float | None = None
    unfamiliar: str = ""
    loads: list[tuple[str, str, str]] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    fail_at: int | None = None  # the call of continue_ that raises, counted from 0
    error: BaseException = field(default_factory=KeyboardInterrupt)

    def load(self, name: str, *, device: str, dtype: str, offline: bool = False) -> types.SimpleNamespace:
        self.loads.append((name, device, dtype))
        config = types.SimpleNamespace(
            name=name, tokens=TokenSpec(), sampling=Sampling(guidance=2.0), prompt_seconds=3.0, familiar_bits=8.0
        )
        return types.SimpleNamespace(config=config, identity="0123456789abcdef", kernel="native")

    def continue_(self, bundle, request, prompts, *, progress, **options) -> Iterator[types.SimpleNamespace]:
        self.calls.append({"request": request, "prompts": prompts, **options})
        if self.fail_at == len(self.calls) - 1:
            raise self.error
        best_of = getattr(request, "best_of", 1)
        for prompt in prompts:
            for stage in ("tokenize", "semantic", "coarse", "fine", "decode"):
                if progress is not None:
                    progress(stage, 1, 2)
            empty = np.zeros((12, 0), np.int64)
            new = np.full(round(getattr(request, "duration", 1) * 16000), self.level + prompt.sample / 100, np.float32)
            yield types.SimpleNamespace(
                waveform=np.concatenate([prompt.waveform, new]),
                prompt_samples=len(prompt.waveform),
                tokens_start=0,
                semantic=empty[0],
                codes=empty,
                stage_seconds={"semantic": 0.5, "decode": 0.1},
                stage_tokens={"semantic": 25, "decode": 50},
                surprise=self.surprise,
                unfamiliar=self.unfamiliar,
                candidates=tuple(-n / 4 for n in range(best_of)) if best_of > 1 else (),
            )


@dataclass
class FakeTokens:
    data: bytes

    def save_bytes(self) -> bytes:
        return b"tokens" + self.data

    @staticmethod
    def load_bytes(data: bytes, bundle: object) -> FakeTokens:
        if not data.startswith(b"tokens"):
            raise InputError("not a file of tokens")
        return FakeTokens(data[6:])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Replaces the models by a `FakePipeline`, and with them torch."""
    fake = FakePipeline()
    bundle = types.ModuleType("audiolm_cli.bundles.bundle")
    bundle.load = fake.load  # type: ignore[attr-defined]
    pipeline = types.ModuleType("audiolm_cli.pipeline")
    for name, value in {
        "continue_": fake.continue_,
        "generate": fake.continue_,
        "resynth": fake.continue_,
        "Prompt": lambda waveform, position, sample, seed: types.SimpleNamespace(
            waveform=waveform, position=position, sample=sample, seed=seed
        ),
        "encode": lambda bundle, waveform, progress: FakeTokens(waveform.tobytes()),
        "decode": lambda bundle, tokens, quantizers, progress: (
            np.frombuffer(tokens.data, np.float32) / (quantizers or 1)
        ),
    }.items():
        setattr(pipeline, name, value)
    token_file = types.ModuleType("audiolm_cli.token_file")
    token_file.Tokens = FakeTokens  # type: ignore[attr-defined]
    for module in (bundle, pipeline, token_file):
        package, _, name = module.__name__.rpartition(".")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(importlib.import_module(package), name, module, raising=False)
    return fake


# A stand-in for the models inside another process, with SLEEP seconds before all but the first call.
STAND_IN = """
import importlib, types, time, os, numpy as np
from audiolm_cli.config import Sampling
calls = []
def continue_(bundle, request, prompts, **options):
    time.sleep(float(os.environ["SLEEP"]) if calls else 0)
    calls.append(prompts)
    for prompt in prompts:
        new = np.zeros(16000, np.float32)
        whole = np.concatenate([prompt.waveform, new])
        yield types.SimpleNamespace(waveform=whole, prompt_samples=len(prompt.waveform),
                                    stage_seconds={}, stage_tokens={}, surprise=None, unfamiliar="", candidates=())
bundle = types.ModuleType("audiolm_cli.bundles.bundle"); pipeline = types.ModuleType("audiolm_cli.pipeline")
tokens = types.SimpleNamespace(sample_rate=16000, samples_per_semantic=640, quantizers=12)
config = types.SimpleNamespace(name="x", tokens=tokens, sampling=Sampling(), prompt_seconds=3, familiar_bits=0)
bundle.load = lambda *a, **k: types.SimpleNamespace(config=config, identity="0", kernel="native")
pipeline.continue_ = continue_
pipeline.Prompt = lambda waveform, *key: types.SimpleNamespace(waveform=waveform)
for module in (bundle, pipeline):
    package, _, name = module.__name__.rpartition(".")
    sys.modules[module.__name__] = module
    setattr(importlib.import_module(package), name, module)
"""


def spawn(*arguments: object, code: str = f"exec({STAND_IN!r})", **options: Any) -> subprocess.Popen:
    """Starts a command line in another process, after `code`; unless told otherwise with a stand-in for the models."""
    interruptible = "import signal; signal.signal(2, signal.default_int_handler)"  # as it is not in the background
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {interruptible}; {code}"
    program += "; from audiolm_cli.command_line.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **options)
