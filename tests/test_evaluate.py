"""The sections of `make eval` with a tiny random bundle and made-up recordings."""

from __future__ import annotations

import functools
import json
import types
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli.bundle import Bundle, stage_model
from audiolm_cli.config import preset
from audiolm_cli.errors import UsageError
from audiolm_cli.semantic import SemanticTokenizer
from audiolm_cli.soundstream import SoundStream
from audiolm_cli.training import bits, continuations, evaluate, music, setting, tables
from audiolm_cli.training.data import Clip, Corpus
from audiolm_cli.training.measures import Figure

RATE = 16000


@pytest.fixture(scope="module")
def bundle() -> Any:
    torch.manual_seed(0)
    config = preset("tiny")
    config.depends.update({part: {"self": part * 8} for part in ("codec", "tokenizer")})
    stages = {
        name: stage_model(getattr(config, name), config.tokens, name).eval() for name in ("semantic", "coarse", "fine")
    }
    tokenizer = SemanticTokenizer(config.tokenizer, config.tokens).eval()
    torch.nn.init.normal_(tokenizer.get_buffer("centroids"))
    codec = SoundStream(config.codec, config.tokens).eval()
    device = torch.device("cpu")
    found: Any = types.SimpleNamespace(config=config, device=device, codec=codec, tokenizer=tokenizer, **stages)
    found.tokenize = functools.partial(Bundle.tokenize, found)
    return found


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Twelve recordings of 12 s, two of each speaker."""
    audio = (3000 * np.random.default_rng(0).standard_normal(12 * 12 * RATE)).astype(np.int16)
    return Corpus(
        audio, [Clip(f"{n}.wav", f"s{n % 6}", "librispeech", "", n * 12 * RATE, 12 * RATE) for n in range(12)]
    )


def test_tokens_are_kept_under_the_identity_of_their_models(bundle, corpus, tmp_path):
    first = bits.bundle_tokens(bundle, corpus, "valid", tmp_path)
    (file,) = tmp_path.iterdir()
    assert "codeccod" in file.name
    assert first.codes.shape == (12, 2 * len(first.semantic))
    assert sum(track.length for track in first.tracks) == len(first.semantic)
    without_models: Any = types.SimpleNamespace(config=bundle.config)
    again = bits.bundle_tokens(without_models, corpus, "valid", tmp_path)
    assert torch.equal(again.codes, first.codes)


def test_hours_bound_the_tokens(bundle, corpus, tmp_path):
    some = bits.bundle_tokens(bundle, corpus, "train", tmp_path, hours=20 / 3600)
    assert 20 * 25 <= len(some.semantic) < 60 * 25


def test_bits_have_a_row_for_every_quantizer(bundle, corpus, tmp_path):
    data = bits.bundle_tokens(bundle, corpus, "valid", tmp_path)
    rows = bits.stage_bits(bundle, data, data, crops=4)
    assert list(rows) == ["semantic", *(f"coarse {q}" for q in range(4)), *(f"fine {q}" for q in range(4, 12))]
    assert rows["coarse 0"]["model"].mean == pytest.approx(np.log2(32), abs=0.5)  # untrained
    assert rows["semantic"]["bigram"] <= rows["semantic"]["unigram"] + 0.1


def test_effects_compare_crops_of_different_speakers(bundle, corpus, tmp_path):
    data = bits.bundle_tokens(bundle, corpus, "valid", tmp_path)
    effects = bits.conditioning_effects(bundle, data, crops=8)
    assert set(effects) == {"own", "other semantics", "other reference"}
    assert effects["other semantics"].mean != 0
    drawn = bits._pairs(bits._drawn(bundle.coarse, [data], bits.EFFECTS, 20))
    speakers = [track.speaker for _, track, _, _ in drawn]
    assert speakers
    assert all(a != b for a, b in zip(speakers[::2], speakers[1::2], strict=True))


def test_generated_continuations_have_the_length_asked_for(bundle, monkeypatch):
    monkeypatch.setattr(continuations, "NEW", 8000)
    case = continuations.Case("a", np.zeros(continuations.PROMPT, np.float32), np.zeros(0), np.zeros(2))
    own = setting.samplings(bundle, [])["AudioLM"]
    for seconds, samples in ((0.5, 8000), (0.75, 12000)):
        (new,) = setting.generated(bundle, [case], own, seconds)
        assert len(new) == samples


def test_music_has_a_row_for_every_answer(bundle, corpus, tmp_path, monkeypatch):
    """What is heard of a recording is here its level in three keys."""

    def hear(samples: np.ndarray) -> music.Heard:
        pitches = np.repeat(
            [60, 64, 67], (1 + (1000 * np.abs(samples[: len(samples) // 3 * 3].reshape(3, -1)).mean(1)).astype(int))
        )
        onsets, classes = np.linspace(0, len(samples) / RATE, len(pitches)), np.bincount(pitches % 12, minlength=12)
        return music.Heard(onsets, pitches, classes, float(20 * np.log10(samples.std() + 1e-9)), len(samples) / RATE)

    monkeypatch.setattr(music, "hear", hear)
    monkeypatch.setattr(music, "NEW", RATE * 3 // 2)
    asked = setting.Setting(
        bundle=bundle,
        training=corpus,
        validation=corpus,
        cache=tmp_path,
        quick=False,
        piano=True,
        prompts=4,
        samplings=setting.samplings(bundle, []),
    )
    ((title, table),) = evaluate.music_tables(asked).items()
    assert title == "4 continuations, 4 s + 6 s, of 4 pieces"
    assert next(iter(table)) == "AudioLM"
    assert "acoustic stages alone" in table
    assert table["real continuation"]["intervals"].mean == 1
    assert all(np.isfinite(table[name]["level"].mean) for name in table)


def test_acoustic_stages_alone_do_not_hear_the_semantic_tokens(bundle, monkeypatch):
    case = music.Case("a", np.random.default_rng(0).uniform(-0.3, 0.3, music.PROMPT).astype(np.float32), np.zeros(0))
    own = setting.samplings(bundle, [])["AudioLM"]
    (made,) = evaluate.without_semantics(bundle, [case], own, 0.4)
    assert len(made) == 6400
    with monkeypatch.context() as other:
        other.setattr(
            bundle.tokenizer,
            "tokenize",
            lambda audio, tell=None: torch.zeros(1, audio.shape[-1] // 640, dtype=torch.int64),
        )
        (again,) = evaluate.without_semantics(bundle, [case], own, 0.4)
    assert np.array_equal(made, again)


def test_samplings_given_as_text_change_the_bundles_own(bundle):
    own, text = bundle.config.sampling, '{"guidance": 1.5, "top_p": [1, 1, 1]}'
    (changed,) = setting.samplings(bundle, [text]).values()
    assert (changed.guidance, changed.top_p, changed.temperature) == (1.5, [1, 1, 1], own.temperature)
    for wrong in ("{", '{"heat": 1}', "3"):
        with pytest.raises(UsageError):
            setting.samplings(bundle, [wrong])


def test_tables_print_and_become_json(capsys):
    table: evaluate.Table = {
        "row": {"figure": Figure(0.5, 0.25, 0.75), "codes": 12, "share": 0.125},
        "other": {"share": float("nan")},
    }
    tables.show("title", table)
    printed = capsys.readouterr().out
    assert "0.500 (0.250-0.750)" in printed
    assert "0.125" in printed
    plain = json.loads(json.dumps(tables.plain(table)))
    assert plain["row"]["figure"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert plain["other"]["share"] is None


def test_clips_of_a_corpus_without_names_are_all_of_them(corpus):
    unnamed = Corpus(corpus.audio, [Clip(c.path, c.speaker, "", "", c.offset, c.samples) for c in corpus.clips])
    assert len(setting.of_corpus(unnamed, "librispeech")) == 12
    assert setting.of_corpus(unnamed, "commonvoice") == []
