"""The sections of `make eval` with a tiny random bundle and made-up recordings."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import preset
from audiolm_cli.errors import UsageError
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.corpora.data import HALVES, Clip, Corpus, half, writing_manifest
from audiolm_cli.training.corpora.tokenize import save_tokens
from audiolm_cli.training.evaluation import (
    continuations,
    evaluate,
    language_models,
    music,
    piano,
    setting,
    speech,
    tables,
)
from audiolm_cli.training.measures import recogniser
from audiolm_cli.training.measures.measures import Figure
from audiolm_cli.training.measures.recogniser import RecognisedWords

RATE = 16000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    config = preset("tiny")
    config.depends.update({part: {"self": part * 8} for part in ("codec", "tokenizer")})
    found = Bundle(Path(), config, torch.device("cpu"), torch.float32)
    for name in ("semantic", "coarse", "fine"):
        setattr(found, name, stage_model(getattr(config, name), config.tokens, name).eval())
    found.tokenizer = SemanticTokenizer(config.tokenizer, config.tokens).eval()
    torch.nn.init.normal_(found.tokenizer.get_buffer("centroids"))
    found.codec = SoundStream(config.codec, config.tokens).eval()
    return found


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Twelve recordings of 12 s, two of each speaker."""
    audio = (3000 * np.random.default_rng(0).standard_normal(12 * 12 * RATE)).astype(np.int16)
    return Corpus(
        audio, [Clip(f"{n}.wav", f"s{n % 6}", "librispeech", "", n * 12 * RATE, 12 * RATE) for n in range(12)]
    )


def test_tokens_are_kept_under_the_identity_of_their_models(bundle, corpus, tmp_path):
    first = language_models.bundle_tokens(bundle, corpus, "valid", tmp_path)
    (file,) = tmp_path.iterdir()
    assert "codeccod" in file.name
    assert first.codes.shape == (12, 2 * len(first.semantic))
    assert sum(track.length for track in first.tracks) == len(first.semantic)
    without_models = Bundle(Path("nowhere"), bundle.config, bundle.device, bundle.dtype)
    again = language_models.bundle_tokens(without_models, corpus, "valid", tmp_path)
    assert torch.equal(again.codes, first.codes)


def test_the_training_tokens_are_those_that_training_made(bundle, corpus, tmp_path):
    sources = {part: bundle.config.depends[part]["self"] for part in ("codec", "tokenizer")}
    spec, runs = bundle.config.tokens, tmp_path / "runs"
    (runs / "tokens").mkdir(parents=True)
    semantic, codes = torch.arange(30).short() % 16, torch.zeros(spec.quantizers, 60, dtype=torch.int16)
    for share in range(2):
        tracks = [{"speaker": f"s{share}/0", "offset": 0, "length": 30}]
        for number in (0, 1):  # the second one is altered
            file = runs / "tokens" / f"train_{number}_{share}of2.safetensors"
            save_tokens(file, spec, semantic, codes + share, tracks, sources)
    found = language_models.bundle_tokens(bundle, corpus, "train", runs / "eval")
    assert [(track.speaker, track.offset) for track in found.tracks] == [("s0", 0), ("s1", 30)]
    assert [int(found.cut(track, 0, 30)[1].max()) for track in found.tracks] == [0, 1]
    file.with_name("train_0_1of2.safetensors").unlink()
    (runs / "eval").mkdir()
    made = language_models.bundle_tokens(bundle, corpus, "train", runs / "eval")
    assert len(made.semantic) > 60


def test_hours_bound_the_tokens(bundle, corpus, tmp_path):
    some = language_models.bundle_tokens(bundle, corpus, "train", tmp_path, hours=20 / 3600)
    assert 20 * 25 <= len(some.semantic) < 60 * 25


def test_synthetic_speech_is_found_as_tokens_of_the_same_tokenizer(bundle, tmp_path):
    spec, identity = bundle.config.tokens, bundle.config.depends["tokenizer"]["self"]
    folder = tmp_path / "tokens"
    folder.mkdir()
    tracks = [{"speaker": "engine/0", "offset": n * 300, "length": 300} for n in range(4)]
    for name, source in (
        ("synthetic_0_0000", identity),
        ("synthetic_1_0000", "another"),
        ("synthetic-valid_0_0000", identity),
    ):
        tokens = torch.randint(spec.semantic_vocabulary, (1200,), generator=torch.Generator().manual_seed(len(name)))
        file = folder / f"{name}.safetensors"
        save_tokens(file, spec, tokens.short(), torch.zeros(12, 0).short(), tracks, {"tokenizer": source})
    (heard,), (held,) = (language_models.synthetic_tokens(bundle, tmp_path, split) for split in ("train", "valid"))
    assert not torch.equal(heard.semantic, held.semantic)
    assert language_models.semantic_bits(bundle, [heard], 8, by_track=True).mean == pytest.approx(
        np.log2(spec.semantic_vocabulary), abs=0.5
    )
    assert language_models.synthetic_tokens(bundle, tmp_path / "nowhere", "train") == []


def test_bits_have_a_row_for_every_quantizer(bundle, corpus, tmp_path):
    data = language_models.bundle_tokens(bundle, corpus, "valid", tmp_path)
    rows = language_models.stage_bits(bundle, data, data, crops=4)
    assert list(rows) == ["semantic", *(f"coarse {q}" for q in range(4)), *(f"fine {q}" for q in range(4, 12))]
    assert rows["coarse 0"]["model"].mean == pytest.approx(np.log2(32), abs=0.5)  # untrained
    assert rows["semantic"]["bigram"] <= rows["semantic"]["unigram"] + 0.1


def test_effects_compare_crops_of_different_speakers(bundle, corpus, tmp_path):
    data = language_models.bundle_tokens(bundle, corpus, "valid", tmp_path)
    effects = language_models.conditioning_effects(bundle, data, crops=8)
    assert set(effects) == {"own", "other semantics", "other reference"}
    assert effects["other semantics"].mean != 0
    drawn = language_models._pairs(language_models._drawn(bundle.coarse, [data], language_models.EFFECTS, 20))
    speakers = [track.speaker for _, track, _, _ in drawn]
    assert speakers
    assert all(a != b for a, b in zip(speakers[::2], speakers[1::2], strict=True))


def test_generated_continuations_have_the_length_asked_for(bundle, monkeypatch):
    monkeypatch.setattr(continuations, "NEW", 8000)
    case = continuations.SpeechCase("a", np.zeros(continuations.PROMPT, np.float32), np.zeros(0), np.zeros(2))
    own = setting.samplings(bundle, [])["AudioLM"]
    for seconds, samples in ((0.5, 8000), (0.75, 12000)):
        (new,) = setting.generated(bundle, [case], own, seconds)
        assert len(new) == samples


@pytest.fixture
def asked(bundle, corpus, tmp_path, monkeypatch):
    """A setting for speech, in which voices are not told apart."""
    monkeypatch.setattr(continuations, "voice", lambda samples: np.eye(256)[int(abs(samples[0]) * 1e4) % 256])
    monkeypatch.setattr(continuations, "NEW", 8000)
    monkeypatch.setattr(continuations, "REFERENCE_CLIPS", 1)
    return setting.Setting(
        bundle=bundle,
        training=corpus,
        validation=corpus,
        cache=tmp_path / "eval",
        quick=True,
        prompts=20,
        samplings=setting.samplings(bundle, []),
    )


def test_prompts_are_of_one_half_and_voices_of_both(asked):
    chosen = {}
    for name in (*HALVES, "both"):
        cases, voices = dataclasses.replace(asked, half=name).cases(20)
        assert len(voices.speakers) == 6
        chosen[name] = {case.speaker for case in cases}
    assert chosen["tuning"] == half(asked.validation, "tuning")
    assert chosen["testing"] == half(asked.validation, "testing")
    assert chosen["both"] == chosen["tuning"] | chosen["testing"]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, "testing"),
        ({"sampling": ["{}"]}, "tuning"),
        ({"best_of": [4]}, "tuning"),
        ({"sampling": ["{}"], "half": "testing"}, "testing"),
        ({"half": "both"}, "both"),
    ],
)
def test_what_is_swept_is_swept_on_the_other_half(options, chosen):
    given = argparse.Namespace(**{"sampling": [], "best_of": [], "half": None} | options)
    assert evaluate.which_half(given, of_piano=False) == chosen
    assert evaluate.which_half(given, of_piano=True) == "both"


def test_sections_judge_the_same_continuations(asked, monkeypatch):
    made = []
    generated = setting.generated

    def watched(*arguments, **how):
        made.append(how)
        return generated(*arguments, **how)

    monkeypatch.setattr(setting, "generated", watched)
    several = dataclasses.replace(asked, half="testing", best_of=[2])
    ((title, table),) = speech.pause_tables(several).items()
    assert title == "between the words of 3 continuations; the testing half"
    assert list(table) == ["AudioLM", "AudioLM, best of 2", "real continuation", "real, through the codec"]
    assert table["real continuation"]["above real"] == Figure(0, 0, 0)
    assert abs(table["real continuation"]["correlation at 20 ms"].mean) < 0.05
    assert made == [{"best_of": 1}, {"best_of": 2}]
    assert speech.pause_tables(several)[title] == table
    assert len(made) == 2


def test_words_are_heard_across_joins_with_the_last_tokens_made_anew_and_kept(asked, monkeypatch):
    """What is heard here is one word, across the join, of the recording and of nothing else."""
    recorded = {case.prompt[:9].tobytes(): np.concatenate([case.prompt, case.real]) for case in asked.cases(20)[0]}

    def recognise(name, cache, timed):
        assert timed

        def hear(samples):
            same = np.array_equal(samples, recorded.get(samples[:9].tobytes(), samples[:0])[: len(samples)])
            return RecognisedWords(["word" if same else name], 0.0, [(2.5, 3.5)])

        return hear

    monkeypatch.setattr(recogniser, "recogniser", recognise)
    monkeypatch.setattr(speech, "ACROSS", 0.5)
    ((title, table),) = speech.join_tables(asked).items()
    assert title == "words across 6 joins, of which 6 by tiny.en and 6 by base cut one; all speakers"
    rows = {name: {column: figure.mean for column, figure in row.items()} for name, row in table.items()}
    said = {"first words heard alike": 1, "cut word said, tiny.en": 1, "cut word said, base": 1}
    assert rows["recording"] == said
    for name in ("AudioLM", "AudioLM, last tokens kept"):
        assert rows[name] == dict.fromkeys(said, 0)


def test_what_was_read_aloud_counts_as_heard(asked, tmp_path):
    corpus = Corpus(asked.training.audio, [dataclasses.replace(asked.training.clips[0], text="one two")])
    folder = tmp_path / "synthetic"
    folder.mkdir()
    with writing_manifest(folder) as row:
        row(["a.ogg", "train", "synthetic", "engine", "", "1", "three four"])
        row(["b.ogg", "valid", "synthetic", "engine", "", "1", "five"])
    both = dataclasses.replace(asked, training=corpus, synthetic=folder)
    assert speech.texts_read(both) == ["one two", "three four"]


def test_without_synthetic_speech_there_is_nothing_to_tell_from_real(asked):
    assert speech.synthetic_tables(asked) == {}


def test_synthetic_tokens_are_told_from_real_ones(asked):
    """Those heard are real ones themselves, those not heard are random."""
    pytest.importorskip("sklearn", reason="needs the extra 'eval'")
    spec, identity = asked.bundle.config.tokens, asked.bundle.config.depends["tokenizer"]["self"]
    real = language_models.bundle_tokens(asked.bundle, asked.training, "train", asked.cache, 2.0)
    (asked.cache.parent / "tokens").mkdir()
    for name, tokens in (
        ("synthetic_0_0000", real.semantic),
        ("synthetic-valid_0_0000", torch.randint(spec.semantic_vocabulary, real.semantic.shape)),
    ):
        tracks = [dataclasses.asdict(track) for track in real.tracks]
        file = asked.cache.parent / "tokens" / f"{name}.safetensors"
        save_tokens(file, spec, tokens.short(), torch.zeros(12, 0).short(), tracks, {"tokenizer": identity})
    ((_, table),) = speech.synthetic_tables(asked).items()
    assert list(table) == ["real, not heard", "synthetic, as heard", "synthetic, not heard, unchanged"]
    same, other = (table[name]["told from real"].mean for name in list(table)[1:])
    assert same < 0.7 < 0.9 < other
    assert table["real, not heard"]["bits"].mean == pytest.approx(table["synthetic, as heard"]["bits"].mean, rel=0.1)


def test_music_has_a_row_for_every_answer(bundle, corpus, tmp_path, monkeypatch):
    """What is heard of a recording is here its level in three keys."""

    def hear(samples: np.ndarray) -> music.Transcription:
        pitches = np.repeat(
            [60, 64, 67], (1 + (1000 * np.abs(samples[: len(samples) // 3 * 3].reshape(3, -1)).mean(1)).astype(int))
        )
        onsets, classes = np.linspace(0, len(samples) / RATE, len(pitches)), np.bincount(pitches % 12, minlength=12)
        level = float(20 * np.log10(samples.std() + 1e-9))
        return music.Transcription(onsets, pitches, classes, level, level - 20, 0.1, len(samples) / RATE)

    monkeypatch.setattr(music, "hear", hear)
    monkeypatch.setattr(music, "NEW", RATE * 3 // 2)
    asked = setting.Setting(
        bundle=bundle,
        training=corpus,
        validation=corpus,
        cache=tmp_path,
        quick=False,
        prompts=4,
        samplings=setting.samplings(bundle, []),
    )
    (first, notes), (second, sound) = piano.music_tables(asked).items()
    assert first == "4 continuations, 4 s + 1.5 s, of 4 pieces: notes"
    assert second == "4 continuations, 4 s + 1.5 s, of 4 pieces: sound"
    assert list(notes) == list(sound)
    assert next(iter(notes)) == "AudioLM"
    assert "acoustic stages alone" in notes
    assert notes["real continuation"]["intervals"].mean == 1
    assert all(np.isfinite(row["level"].mean) for row in sound.values())
    assert {*notes["AudioLM"], *sound["AudioLM"]} == set(music.PianoScores._fields)
    monkeypatch.setattr(music, "LONG", 2 * RATE)
    monkeypatch.setattr(bundle, "config", dataclasses.replace(bundle.config, domain="piano"))
    longer = piano.long_tables(asked)
    assert list(longer) == [f"4 continuations, 4 s + 2 s, of 4 pieces: {what}" for what in ("notes", "sound")]
    monkeypatch.setattr(music, "LONG", 20 * RATE)
    assert piano.long_tables(asked) == {}
    (_, again), (_, sound) = piano.resynthesis_tables(asked).items()
    assert list(again) == list(sound)
    assert list(again) == ["AudioLM", "AudioLM, sampled piano", "source, through the codec", "another piece"]
    assert again["another piece"]["density_kept"].mean == 1  # all recordings are as loud
    assert sound["AudioLM"]["level"] != sound["AudioLM, sampled piano"]["level"]


def test_single_notes_have_a_row_for_every_answer(bundle, corpus, tmp_path, monkeypatch):
    def missing(count: int, seed: int) -> list[music.PianoCase]:
        raise UsageError("fluidsynth is not installed")

    def silent(count: int, seed: int) -> list[music.PianoCase]:
        return [music.PianoCase(f"scale {n}", np.zeros(music.PROMPT, np.float32), np.zeros(8000, np.float32))
                for n in range(count)]  # fmt: skip

    asked = setting.Setting(bundle, corpus, corpus, tmp_path, True, 8, setting.samplings(bundle, []))
    monkeypatch.setattr(music, "single_notes", missing)
    assert piano.note_tables(asked) == {}
    monkeypatch.setattr(music, "single_notes", silent)
    none = np.zeros(0)
    monkeypatch.setattr(
        music, "hear", lambda samples: music.Transcription(none, none, none, -20.0, float(len(samples)), 0.1, 1.0)
    )
    ((title, table),) = piano.note_tables(asked).items()
    assert title == "2 continuations of single notes, 6 s"
    assert list(table) == ["AudioLM", "prompt looped", "real continuation", "real, through the codec"]
    assert table["AudioLM"]["noise"].mean == 8000
    assert asked.made == {}


def test_acoustic_stages_alone_do_not_hear_the_semantic_tokens(bundle, monkeypatch):
    case = music.PianoCase(
        "a", np.random.default_rng(0).uniform(-0.3, 0.3, music.PROMPT).astype(np.float32), np.zeros(0)
    )
    own = setting.samplings(bundle, [])["AudioLM"]
    (made,) = piano.without_semantics(bundle, [case], own, 0.4)
    assert len(made) == 6400
    with monkeypatch.context() as other:
        other.setattr(
            bundle.tokenizer,
            "tokenize",
            lambda audio, tell=None: torch.zeros(1, audio.shape[-1] // 640, dtype=torch.int64),
        )
        (again,) = piano.without_semantics(bundle, [case], own, 0.4)
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
