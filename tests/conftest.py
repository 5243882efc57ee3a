"""Fixtures for all tests; none needs the network, a GPU or recordings from outside the repository."""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import soundfile

from tests.helpers.fakes import FakePipeline, install
from tests.helpers.kernels import best, library  # noqa: F401
from tests.helpers.sounds import tone

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a busy machine
# a busy machine is no fault
hypothesis.settings.register_profile("audiolm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("audiolm")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, so that no process of `make test` begins one when the others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("AUDIOLM_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # not the user's


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """Those of the command line end with the test. A pool's process that is ended as soon as it is forked would raise
    SIGTERM's exception, go on as a copy of pytest, and be waited for without end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Replaces the models by a `FakePipeline` that makes real outputs."""
    from audiolm_cli import pipeline, token_file  # noqa: F401  (before there is a stand-in that it would import)

    fake = FakePipeline(output=pipeline.Output, prompt=pipeline.Prompt)
    install(fake, monkeypatch.setitem, functools.partial(monkeypatch.setattr, raising=False))
    return fake
