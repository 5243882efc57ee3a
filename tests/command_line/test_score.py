"""`audiolm score`: log-probabilities by stage and token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle
from audiolm_cli.language_models.likelihood import log_probabilities


@pytest.fixture
def recording(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", samples, 16000)
    return "in.wav"


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_each_stage_has_a_number_for_each_token_and_their_sum(audiolm, tiny_bundle, recording):
    code, out, err = audiolm("score", recording, "-m", tiny_bundle)
    assert code == 0, err
    (found,) = lines(out)
    assert (found["path"], found["seconds"], found["model"]) == (recording, 1.0, "tiny")
    shapes = {"semantic": (25,), "coarse": (50, 4), "fine": (50, 8)}
    assert list(found["stages"]) == list(shapes)
    for stage, shape in shapes.items():
        each, said = np.array(found["stages"][stage]["log_probabilities"]), found["stages"][stage]
        assert (each.shape, each.size) == (shape, said["tokens"])
        assert each.max() < 0
        assert said["log_probability"] == pytest.approx(each.sum(), abs=1e-5 * each.size)


def test_tokens_have_the_numbers_of_their_recording(audiolm, tiny_bundle, recording):
    assert audiolm("encode", recording, "-o", "in.safetensors", "-m", tiny_bundle)[0] == 0
    code, out, err = audiolm("score", recording, "in.safetensors", "-m", tiny_bundle, "--stage", "semantic")
    assert code == 0, err
    sound, tokens = lines(out)
    assert list(sound["stages"]) == ["semantic"]
    assert {**sound, "path": "in.safetensors"} == tokens


def test_a_bad_file_is_one_line_and_the_others_are_scored(audiolm, tiny_bundle, recording, tmp_path):
    audiolm("encode", recording, "-o", "in.safetensors", "-m", tiny_bundle)
    with open("in.safetensors", "rb") as file:
        header = json.loads(file.read()[8:].split(b"}}", 1)[0] + b"}}")["__metadata__"]
    tensors = load_file("in.safetensors")
    save_file(tensors, "other.safetensors", {**header, "tokenizer": "0"})
    save_file({**tensors, "codes": tensors["codes"][:4].clone()}, "few.safetensors", header)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    bad = {
        "nowhere.wav": "no such file",
        "short.wav": "shorter than one token",
        "other.safetensors": "of another tokenizer",
        "few.safetensors": "codes of 4 quantizers, not of 12",
    }
    code, out, err = audiolm("score", *bad, recording, "-m", tiny_bundle, "-q")
    assert (code, [found["path"] for found in lines(out)]) == (1, [recording])
    errors = err.splitlines()
    assert len(errors) == len(bad)
    for line, (path, why) in zip(errors, bad.items(), strict=True):
        assert line.startswith("audiolm: error: ")
        assert path in line
        assert why in line.lower()
    assert audiolm("score", "nowhere.wav", recording, "-m", tiny_bundle, "--fail-fast")[:2] == (1, "")
    assert audiolm("score")[0] == 2
    assert audiolm("score", recording, "--stage", "loud")[0] == 2


def test_windows_go_on_where_the_ones_before_ended(tiny_bundle):
    """A token's number is that of a piece which begins half a window before what is new."""
    loaded = bundle.load(str(tiny_bundle), device="cpu", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    semantic, codes = (torch.randint(16, shape, generator=generator) for shape in ((600,), (12, 1200)))
    for model in loaded.stages.values():
        size = round(model.config.window_seconds * 25)
        found = log_probabilities(model, semantic, codes)
        rows = len(found) // 600
        first = model.token_losses(model.batch([(semantic[:size], codes[:, : 2 * size])]))[0]
        assert torch.allclose(found[: size * rows], -first, atol=1e-5)
        start = size - size // 2
        piece = semantic[start : start + size], codes[:, 2 * start : 2 * (start + size)]
        second = model.token_losses(model.batch([piece]))[0][size // 2 * rows :]
        assert torch.allclose(found[size * rows : (start + size) * rows], -second, atol=1e-5)
        assert torch.isfinite(found).all()


def test_probabilities_of_all_tokens_that_could_come_add_up_to_one(tiny_bundle):
    loaded = bundle.load(str(tiny_bundle), device="cpu", dtype="float32")
    tokens = pipeline.encode(loaded, np.random.default_rng(1).uniform(-0.5, 0.5, 1280).astype(np.float32))
    total = 0.0
    for code in range(32):
        codes = tokens.codes.clone()
        codes[3, -1] = code
        total += float(log_probabilities(loaded.coarse, tokens.semantic, codes)[-1, 3].exp())
    assert total == pytest.approx(1, abs=1e-4)
