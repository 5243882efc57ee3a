"""The picture of an output."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from audiolm_cli.command_line import cli, plot
from audiolm_cli.config import preset
from audiolm_cli.pipeline import Output
from tests.helpers import ROOT
from tests.helpers.sounds import tone

drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.mark.slow
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
    six = dataclasses.replace(spec, coarse=6)
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


@drawn
def test_pictures_of_many_outputs(fake, prompt, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "continue",
        str(prompt),
        "--out-dir",
        "o",
        "-n",
        "2",
        "--plot",
        "o/{stem}-{index}.png",
        "--duration",
        "1",
    ]
    assert cli.main(command) == 0
    assert sorted(os.listdir("o")) == ["prompt-0.png", "prompt-1.png", "prompt.0.wav", "prompt.1.wav"]


@pytest.mark.slow
@drawn
def test_a_name_is_no_formula(fake, prompt, tmp_path) -> None:
    for name in ("a$x^$", "$\\frac", "\udc80", "{}", "漢字"):
        command = ["continue", str(prompt), "-o", f"{tmp_path}/{name}.wav", "--plot", f"{tmp_path}/a.png", "-f"]
        assert cli.main([*command, "--duration", "0.1"]) == 0


UNWRITABLE = """
import os, sys
sys.path.insert(0, {root!r})
import numpy as np, torch
from audiolm_cli.command_line import plot
from audiolm_cli.config import preset
from audiolm_cli.pipeline import Output
plot.png(Output(np.zeros(1600, np.float32), torch.zeros(0), torch.zeros(12, 0)), preset("tiny").tokens, "nothing")
"""


@pytest.mark.slow
@drawn
@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_matplotlib_says_nothing_where_it_cannot_keep_its_fonts(tmp_path, home) -> None:
    unwanted = {"XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"}
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    environment |= {"HOME": home, "TMPDIR": str(tmp_path)}
    program = [sys.executable, "-c", UNWRITABLE.format(root=str(ROOT))]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_matplotlib_it_says_what_to_do(fake, prompt, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["continue", str(prompt), "-o", f"{tmp_path}/a.wav", "--plot", f"{tmp_path}/a.png"]
    assert cli.main(command) == 2
    assert "pip install 'audiolm[plot]'" in capfd.readouterr().err
    assert fake.loads == []
