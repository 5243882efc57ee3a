"""The picture of an output."""

from __future__ import annotations

import dataclasses
import importlib.util
import io

import numpy as np
import pytest
import torch

from audiolm_cli import cli, plot
from audiolm_cli.config import preset
from audiolm_cli.pipeline import Output
from tests.conftest import tone

drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")


@drawn
def test_a_picture_shows_sound_and_prompt() -> None:
    from matplotlib.image import imread

    spec = preset("tiny").tokens
    output = Output(tone(2.0), torch.arange(25) % 16, torch.arange(600).view(12, 50) % 32, 16000, 16000)
    pixels = imread(io.BytesIO(plot.png(output, spec, "a title")))
    assert pixels.shape[0] == 700
    assert pixels.shape[1] == 600
    cyan = np.isclose(pixels[..., :3], (0, 1, 1)).all(-1).sum(0)
    assert (cyan > 300).sum() in (1, 2)  # one line through all four axes
    assert np.isclose(pixels[250, :, :3], pixels[250, 300, :3]).all(-1).mean() < 1
    six = dataclasses.replace(spec, quantizers=6, coarse=6)
    output = dataclasses.replace(output, codes=output.codes[:6])
    assert imread(io.BytesIO(plot.png(output, six, "no stage 3"))).shape == pixels.shape
    plot.png(Output(tone(0.02), torch.zeros(0), torch.zeros(12, 0)), spec, "nothing")


@drawn
def test_the_spectrogram_finds_a_tone() -> None:
    time = np.arange(16000) / 16000
    level = plot._spectrogram(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert level[:, 20:100].argmax(0).tolist() == [32] * 80
    assert (level.max(), level.min()) == (0, -plot.RANGE)


@drawn
def test_the_option_writes_it_and_never_over_something(fake, prompt, tmp_path, capfd) -> None:
    command = ["continue", str(prompt), "-o", f"{tmp_path}/a.wav", "--plot", f"{tmp_path}/a.png", "--duration", "1"]
    assert cli.main(command) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a.wav").unlink()
    assert cli.main(command) == 1
    assert "a.png: exists already" in capfd.readouterr().err
    assert not (tmp_path / "a.wav").exists()
    assert cli.main([*command, "-n", "2"]) == 2


def test_without_matplotlib_it_says_what_to_do(fake, prompt, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["continue", str(prompt), "-o", f"{tmp_path}/a.wav", "--plot", f"{tmp_path}/a.png"]
    assert cli.main(command) == 2
    assert "pip install 'audiolm[plot]'" in capfd.readouterr().err
    assert fake.loads == []
