"""The program from Python, with a tiny random bundle: what goes in, what comes out, what is refused."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import audiolm_cli
from audiolm_cli import api
from audiolm_cli.audio import files
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles import catalogue
from audiolm_cli.command_line import cli
from audiolm_cli.errors import AudioLMError, ExistsError, InputError, ModelError, UsageError
from tests.helpers import ROOT
from tests.helpers.sounds import noise

HOW: Any = {"duration": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> api.Model:
    return audiolm_cli.load(str(tiny_bundle), device="cpu", threads=1)


def test_what_is_made_is_what_the_command_line_makes(
    model: api.Model, tiny_bundle: Path, tmp_path: Path, capfd: Any
) -> None:
    files.write(tmp_path / "in.wav", noise(1.0), 16000, {})
    sound = files.read(tmp_path / "in.wav", 16000).samples
    options = ["-m", str(tiny_bundle), "-o", str(tmp_path / "out.wav"), "--seed", "3", "--duration", "0.8", "-q"]
    assert cli.main(["continue", str(tmp_path / "in.wav"), *options]) == 0
    capfd.readouterr()
    result = model.continue_(sound, 16000, **HOW)
    result.save(tmp_path / "api.wav")
    written, api_written = (files.read(tmp_path / name, 16000) for name in ("out.wav", "api.wav"))
    assert np.array_equal(written.samples, api_written.samples)
    assert '"seed":3' in api_written.tags["comment"]
    assert (result.sample_rate, result.prompt_samples, result.seed) == (16000, 16000, 3)
    assert result.codes.shape == (12, 2 * len(result.semantic))
    assert set(result.stage_seconds) == {"tokenize", "semantic", "coarse", "fine", "decode"}
    assert result.stage_tokens["semantic"] > 0
    with pytest.raises(ExistsError):
        result.save(tmp_path / "api.wav")
    result.save(tmp_path / "api.wav", force=True)
    with pytest.raises(UsageError, match="must end in"):
        result.save(tmp_path / "api.aiff")
    assert capfd.readouterr() == ("", "")  # nothing is printed


def test_arrays_and_tensors_of_any_kind_go_in(model: api.Model, tmp_path: Path) -> None:
    sound = files.pcm16(noise(1.0))
    floats = sound.astype(np.float32) / 32768
    files.write(tmp_path / "in.wav", floats, 16000, {})
    expected = model.continue_(floats, 16000, **HOW).waveform
    for given in (sound, torch.from_numpy(sound), torch.from_numpy(floats).double(), np.stack([floats, floats])):
        assert np.array_equal(model.continue_(given, 16000, **HOW).waveform, expected)
    assert np.array_equal(model.continue_(tmp_path / "in.wav", **HOW).waveform, expected)
    assert len(model.continue_(noise(1.0), 8000, **HOW).waveform) == 2 * 16000 + 12800


def test_streams_are_the_same_sound_and_may_take_turns(model: api.Model) -> None:
    sound = noise(1.0)
    whole = {
        "continue": model.continue_(sound, 16000, **HOW),
        "new": model.continue_(sound, 16000, continuation_only=True, **HOW),
        "generate": model.generate(**HOW),
        "resynth": model.resynth(sound, 16000, speaker=noise(0.5, 1), seed=3),
    }
    streams = {
        "continue": model.stream(sound, 16000, **HOW),
        "new": model.stream(sound, 16000, continuation_only=True, **HOW),
        "generate": model.stream(**HOW),
        "resynth": model.stream(sound, 16000, resynth=True, speaker=noise(0.5, 1), seed=3),
    }
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in streams}
    while any(more := [(name, next(stream, None)) for name, stream in streams.items()]):
        for name, chunk in more:
            if chunk is not None:
                chunks[name].append(chunk)
        if all(chunk is None for _, chunk in more):
            break
    for name, parts in chunks.items():
        assert len(parts) > 1
        assert np.array_equal(np.concatenate(parts), whole[name].waveform)
    assert len(whole["new"].waveform) == 12800
    endless = model.stream(duration=math.inf, seed=3)
    assert len(next(endless)) > 0


def test_threads_take_turns(model: api.Model) -> None:
    expected = [model.generate(duration=0.5, seed=seed).waveform for seed in range(4)]
    made: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        made[seed] = model.generate(duration=0.5, seed=seed).waveform

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(made[seed], expected[seed]) for seed in range(4))


def test_tokens_and_back_and_what_is_found(model: api.Model, tiny_bundle: Path, monkeypatch: Any) -> None:
    tokens = model.encode(noise(1.0), 16000)
    assert tokens.codes.shape == (12, 50)
    assert len(model.decode(tokens).waveform) == 16000
    assert not np.array_equal(model.decode(tokens, 4).waveform, model.decode(tokens).waveform)
    with pytest.raises(UsageError, match="has only 12"):
        model.decode(tokens, 13)
    made = model.generate(duration=4, seed=1)
    found = model.detect(made.waveform, made.sample_rate)
    assert found["path"] is None
    assert found["classifier"] == "tiny"
    monkeypatch.setattr(catalogue, "embedded", lambda: [])
    plain = audiolm_cli.detect(noise(4.0), 16000, model=str(tiny_bundle))
    assert (plain["watermark"], plain["classifier"]) == (False, "tiny")


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda m: m.continue_(noise(1.0)), UsageError, "sample_rate: must be"),
        (lambda m: m.continue_(noise(1.0), 10), UsageError, "sample_rate: must be"),
        (lambda m: m.continue_([0.1] * 16000, 16000), UsageError, "a sound is an array"),
        (lambda m: m.continue_(noise(1.0), 16000, duration=-1), UsageError, "duration"),
        (lambda m: m.continue_(noise(1.0), 16000, durations=1), UsageError, "durations"),
        (lambda m: m.continue_(noise(1.0), 16000, duration=math.inf), UsageError, "without end"),
        (lambda m: m.generate(output="a.wav"), UsageError, "command line"),
        (lambda m: m.generate(max_pause=1), UsageError, "max-pause: tiny has no list"),
        (lambda m: m.resynth(noise(1.0), 16000, max_pause=1), UsageError, "max_pause: not an option here"),
        (lambda m: m.continue_(noise(0.01), 16000), InputError, "shorter than one token"),
        (lambda m: m.continue_(np.zeros(0), 16000), InputError, "no audio"),
        (lambda m: m.continue_(noise(1.0) * np.nan, 16000), InputError, "NaN"),
        (lambda m: m.continue_("nowhere.wav"), InputError, "nowhere.wav"),
        (lambda m: m.resynth(noise(1.0), 16000, speaker=np.zeros(16000)), InputError, "silent"),
        (lambda m: audiolm_cli.load("nothing-of-that-name"), ModelError, "nothing-of-that-name"),
    ],
)
def test_errors_are_of_our_types(model: api.Model, call: Any, kind: type[AudioLMError], said: str) -> None:
    with pytest.raises(kind, match=said):
        call(model)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, audiolm_cli; print(audiolm_cli.__version__, *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(out.split()) & {"torch", "numpy", "typer"}
    with pytest.raises(AttributeError):
        audiolm_cli.nothing  # noqa: B018


def test_the_examples_in_the_documents_run(model: api.Model, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundles, "load", lambda *names, **how: model.bundle)
    for n, name in enumerate(("prompt.wav", "reference.wav")):
        files.write(name, noise(1.0, n), 16000, {})
    blocks = re.findall(
        r"(?<=```python\n).*?(?=```)", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 4
    exec("\n".join(blocks), {})
    assert {file.name for file in tmp_path.iterdir()} == {"prompt.wav", "reference.wav", "out.wav", "four.flac"}
