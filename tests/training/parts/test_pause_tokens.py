"""The program that finds the tokens that stand for silence, and what assembly does with them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.folder import read_config
from audiolm_cli.config import preset
from audiolm_cli.language_models.pauses import PauseLimit
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.parts import pause_tokens
from audiolm_cli.training.parts.assemble import assemble
from tests.helpers.bundles import write_parts


def test_tokens_are_found_whose_sounds_are_mostly_quiet() -> None:
    tokens = np.repeat([0, 1, 2, 3, 1], [20, 12, 10, 9, 8])
    quiet = np.zeros(len(tokens), bool)
    quiet[20:32] = quiet[42:51] = True  # 12 of 20 and all of 9, which are too few
    found = pause_tokens.find([(tokens, quiet)], 5)
    assert found == pause_tokens.Found([1], 12 / 21, 12 / 20)
    nothing = pause_tokens.find([(tokens, np.zeros(len(tokens), bool))], 5)
    assert nothing == pause_tokens.Found([], 0.0, 0.0)


def test_recordings_are_chosen_until_there_are_enough() -> None:
    clips = [Clip(str(n), "a", "", "", 10 * n, 10) for n in range(10)]
    corpus = Corpus(np.arange(100).astype(np.int16), clips)
    assert [len(samples) for samples in pause_tokens.chosen(corpus, 25)] == [10, 10, 10]
    assert len({float(samples[0]) for samples in pause_tokens.chosen(corpus, 1e9)}) == 10


def test_what_is_far_below_a_recordings_level_is_quiet(tiny_bundle: Path) -> None:
    bundle = bundles.load(str(tiny_bundle), device="cpu")
    sound = 0.1 * np.random.default_rng(0).standard_normal(20 * 640 + 100).astype(np.float32)
    sound[6400:9600] *= 0.03
    tokens, quiet = pause_tokens.heard(bundle, sound)
    assert tokens.shape == (20,)
    assert np.flatnonzero(quiet).tolist() == [10, 11, 12, 13, 14]


def test_it_prints_a_setting_that_assembly_takes(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.3, 0.3, 160000) * np.repeat([1, 0.001], 80000), 16000)
    (tmp_path / "manifest.tsv").write_text("path\tsplit\tspeaker\na.wav\ttrain\ta\n")
    arguments = ["--model", tiny_bundle, "--data", tmp_path, "--runs", tmp_path / "runs"]
    monkeypatch.setattr(sys, "argv", ["pauses", *map(str, arguments)])
    pause_tokens.main()
    out, err = capsys.readouterr()
    settings = json.loads(out)
    assert settings["pause_tokens"]
    assert json.loads(err)["tokens"] == len(settings["pause_tokens"])
    write_parts(tmp_path / "parts", preset("tiny"))
    assemble(tmp_path / "parts", "tiny", tmp_path / "tiny", {**settings, "max_pause": 0.5})
    config = read_config(tmp_path / "tiny")
    assert (list(config.pause_tokens), config.max_pause) == (settings["pause_tokens"], 0.5)


def test_assembly_keeps_the_tokens_of_its_own_tokenizer_only(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_parts(tmp_path / str(seed), dataclasses.replace(preset("tiny"), detector=None), seed)
    listed = {"pause_tokens": [3, 5], "max_pause": 1.0, "prompt_seconds": 2.0}
    assemble(tmp_path / "0", "tiny", tmp_path / "tiny", listed)
    for parts, expected in (("0", ((3, 5), 1.0)), ("1", ((), 0.0))):
        assemble(tmp_path / parts, "tiny", tmp_path / "tiny")
        config = read_config(tmp_path / "tiny")
        assert (config.pause_tokens, config.max_pause, config.prompt_seconds) == (*expected, 2.0)


def test_the_list_of_the_embedded_speech_bundle_gives_a_limit() -> None:
    config = bundles.load("speech", device="cpu").config
    limit = PauseLimit.of(config.pause_tokens, 1.0, config.tokens.semantic_rate)
    assert (limit.longest, limit.revived) == (25, 3)
    assert 0 < len(limit.tokens) < config.tokens.semantic_vocabulary / 2
