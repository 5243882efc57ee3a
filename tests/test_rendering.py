"""The sound of outputs: joins, levels, rumble, and warnings of prompts that are out of distribution."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli import pipeline, rendering
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle
from audiolm_cli.errors import InputError
from audiolm_cli.pipeline import Prompt
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from tests.helpers.bundles import with_short_windows
from tests.helpers.continuing import SAMPLING, run
from tests.helpers.sounds import noise, tone

AGAIN = ResynthRequest(**SAMPLING)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return with_short_windows(tmp_path_factory.mktemp("bundles"))


def join(prompt: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """In small pieces; what is decoded begins with the whole prompt."""
    shape = rendering.Stitcher(16000, postfilter.PostFilter(16000, []), len(decoded), prompt, len(prompt))
    parts = [shape.push(part) for part in np.array_split(decoded, 150)]
    return np.concatenate([prompt[: len(prompt) - shape.fade], *parts, shape.finish()])


def test_the_crossfade_keeps_the_level() -> None:
    prompt, decoded = tone(1.0), tone(1.5)
    joined = join(prompt, decoded)
    assert len(joined) == 24000
    assert np.abs(joined[:15680] - prompt[:15680]).max() == 0
    assert np.abs(joined[15680:16000]).max() < 1.5 * np.abs(prompt).max()
    assert np.array_equal(joined[16000:], decoded[16000:])


def test_the_crossfade_of_loud_sounds_stays_within_full_scale() -> None:
    prompt, decoded = 0.98 * np.sign(tone(1.0)), 0.89 * np.sign(tone(1.5))
    joined = join(prompt, decoded)
    assert np.abs(joined).max() <= 0.98


LOUD = np.clip(20 * noise(1.0), -1, 1)


@pytest.mark.parametrize("way", ["continue", "generate", "resynth"])
def test_no_output_clips_or_rumbles(tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """With a decoder that shouts and hums."""
    decode = tiny.codec.decoder.forward

    def shouting(latents: torch.Tensor, state: Any) -> torch.Tensor:
        audio = decode(latents, state)
        begin, length = state.get("samples", 0), audio.shape[-1]
        state["samples"] = begin + length
        hum = torch.sin(torch.arange(begin, begin + length) * 2 * torch.pi * 50 / 16000)
        return audio / audio.abs().max().clamp(min=1e-9) * 3 + 2 * hum + 0.5

    monkeypatch.setattr(tiny.codec.decoder, "forward", shouting)
    if way == "continue":
        (result,) = run(tiny, [Prompt(LOUD)], duration=3.0)
    elif way == "generate":
        (result,) = pipeline.generate(tiny, GenerateRequest(duration=3.0, **SAMPLING))
    else:
        (result,) = pipeline.resynth(tiny, AGAIN, [Prompt(np.tile(LOUD, 3))])
    new = result.waveform[result.prompt_samples :]
    assert np.abs(result.waveform).max() <= 1
    assert 0.1 < np.abs(new).max() < 0.9
    energy = np.square(np.abs(np.fft.rfft(new * np.hanning(len(new)))))
    assert energy[: 55 * len(new) // 16000].sum() < 0.01 * energy.sum()
    assert np.abs(pipeline.decode(tiny, pipeline.encode(tiny, LOUD))).max() <= 1


def test_rumble_is_not_what_the_models_go_on_from(tiny: bundle.Bundle) -> None:
    speech = noise(1.0)
    rumble = (0.3 * np.sin(2 * np.pi * 30 * np.arange(16000) / 16000)).astype(np.float32)
    (clean,), (dirty,) = run(tiny, [Prompt(speech)]), run(tiny, [Prompt(speech + rumble)])
    (encoded,) = [pipeline.encode(tiny, speech + rumble)]
    assert np.array_equal(dirty.waveform[:15680], (speech + rumble)[:15680])  # the prompt itself keeps it
    same = (dirty.codes[:, :40] == clean.codes[:, :40]).float().mean()
    assert same > (dirty.codes[:, :40] == encoded.codes[:, -40:]).float().mean() + 0.1


def test_recordings_are_scored_only_for_those_who_ask(tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    def strange(bundle: bundle.Bundle, recording: np.ndarray, tokens: Any) -> tuple[None, str]:
        scored.append(len(recording))
        return None, ""

    monkeypatch.setattr(rendering, "_out_of_distribution", strange)
    recordings = [noise(1), noise(0.5)]
    prompts = [Prompt(recordings[n]) for n in (0, 0, 1)]
    batch = pipeline.Run(tiny, ContinueRequest(seed=0), prompts, 3)
    known = batch.encode([prompt.waveform for prompt in prompts])
    assert [len(tokens.semantic) for tokens in known] == [25, 25, 13]
    assert scored == []
    batch.score_prompts([prompt.waveform for prompt in prompts], known)
    assert scored == [16000, 8000]  # samples of one prompt once


def test_silence_is_said_again_as_silence(tiny: bundle.Bundle) -> None:
    (result,) = pipeline.resynth(tiny, AGAIN, [Prompt(np.zeros(16000, np.float32))])
    assert not result.waveform.any()
    assert result.unfamiliar == "it is silent"
    with pytest.raises(InputError, match="the reference is silent"):
        list(pipeline.resynth(tiny, AGAIN, [Prompt(noise(1.0))], speaker=np.zeros(16000, np.float32)))


@pytest.mark.parametrize(
    ("sound", "why"),
    [
        (np.concatenate([noise(1.0), np.zeros(16000, np.float32)]), "it is silent"),  # what counts of it
        (np.clip(50 * noise(1.0), -1, 1), "cut off at its peak"),
        (noise(1.0), ""),
    ],
    ids=["silence", "overload", "speech"],
)
def test_what_cannot_be_gone_on_from_is_said(tiny: bundle.Bundle, sound: np.ndarray, why: str) -> None:
    (result,) = run(tiny, [Prompt(sound)])
    assert why in result.unfamiliar
    assert bool(why) == bool(result.unfamiliar)


def test_what_is_too_easy_or_too_hard_to_predict_is_said(tiny: bundle.Bundle) -> None:
    config = tiny.config
    for bits, semantic, why in ((30.0, 0.0, ""), (0.01, 0.0, "mostly under 0.0"), (30.0, 31.0, "mostly over 31.0")):
        tiny.config = dataclasses.replace(config, familiar_bits=bits, familiar_semantic_bits=semantic)
        (result,) = run(tiny, [Prompt(noise(1.0))])
        assert why in result.unfamiliar
        assert bool(why) == bool(result.unfamiliar)
    tiny.config = config
