"""`audiolm train` on a tiny bundle: what it makes, that it goes on where it was, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiolm_cli.bundles import bundle
from audiolm_cli.bundles.folder import check_sums, damaged, read_config
from audiolm_cli.console import Console
from audiolm_cli.errors import AudioLMError
from audiolm_cli.provenance import watermark
from audiolm_cli.training.adapting import adapt, decoder, fitting, recordings, stages, tokens, work
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.corpora.tokenize import load_tokens
from audiolm_cli.training.parts.assemble import unpack
from audiolm_cli.training.trainer import Trainer
from tests.helpers.bundles import write_bundle
from tests.training.adapting.voices import RATE, notes, speech

pytestmark = pytest.mark.slow
STEPS = 4
COMMON: dict[str, Any] = {"steps": STEPS, "decoder": True, "device": "cpu", "threads": 1, "least": 30.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with matrices in int8."""
    folder = write_bundle(tmp_path_factory.mktemp("source") / "base", in_int8=True)
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 50 s."""
    file = tmp_path_factory.mktemp("voice") / "voice.wav"
    soundfile.write(file, speech(50), RATE)
    return file


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "BATCH_SECONDS", dict.fromkeys(stages.BATCH_SECONDS, 6.0))
    monkeypatch.setattr(stages, "BATCHES", 1)
    monkeypatch.setattr(fitting, "WARMUP", 1)
    monkeypatch.setattr(decoder, "CROPS", 2)
    monkeypatch.setattr(decoder, "PEAK_RATE", 1e-3)
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1.0)  # every step
    monkeypatch.setattr(adapt, "SAMPLES", 1)
    monkeypatch.setattr(adapt, "SAMPLE_SECONDS", 0.4)


@pytest.fixture
def train(source: Path, voice: Path) -> Callable[..., dict[str, Any]]:
    def run(out: Path, **options: Any) -> dict[str, Any]:
        asked = {"recordings": [str(voice)], "source": str(source), **COMMON, **options}
        return adapt.adapt(adapt.Options(output=str(out), **asked), Console())

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, source: Path, voice: Path) -> Path:
    """The bundle of an uninterrupted training."""
    out = tmp_path_factory.mktemp("made") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        _small.__wrapped__(patch)  # type: ignore[attr-defined]
        record = adapt.adapt(adapt.Options([str(voice)], str(out), str(source), **COMMON), Console(quiet=True))
    (out.parent / "record.json").write_text(json.dumps(record))
    return out


def same_tensors(a: Path, b: Path) -> bool:
    return all((a / f.name).read_bytes() == f.read_bytes() for f in b.glob("*.safetensors"))


def test_what_is_made_is_an_ordinary_bundle(made: Path, source: Path):
    assert sorted(os.listdir(made.parent)) == ["mine", "record.json"]  # nothing else stays
    assert not damaged(made)
    record, config, base = json.loads((made.parent / "record.json").read_text()), read_config(made), read_config(source)
    for part in ("tokenizer", "semantic", "detector"):
        assert (made / f"{part}.safetensors").read_bytes() == (source / f"{part}.safetensors").read_bytes()
    for stage in ("coarse", "fine"):
        ours, theirs = (load_file(folder / f"{stage}.safetensors") for folder in (made, source))
        assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
            n: (t.shape, t.dtype) for n, t in theirs.items()
        }
        assert any(not torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        figures = record["stages"][stage]
        assert figures["kept"]
        assert figures["after"] < figures["before"]
        assert figures["steps"] == STEPS
        assert config.trained[stage]["before"] == base.trained[stage]
    assert (config.name, config.format_version, config.depends) == ("mine", 2, base.depends)
    assert config.trained["adapted"]["from"] == base.name
    assert config.trained["detector"]["reused_from"] == base.name
    assert watermark.bundle_id(config.name) != watermark.bundle_id(base.name)
    assert record["watermark_bits"] == watermark.bits(watermark.bundle_id(config.name))
    assert list(record["stages"]) == ["coarse", "fine"]
    loaded = bundle.load(str(made), device="cpu")
    assert loaded.coarse.config == base.coarse


def test_a_new_decoder_leaves_encoder_and_codes_as_they_were(made: Path, source: Path):
    ours, theirs = (load_file(folder / "codec.safetensors") for folder in (made, source))
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert any(t.dtype == torch.int8 for name, t in ours.items() if name in changed)
    assert bundle.tensors_identity(ours, bundle.TOKEN_SOURCES["codec"]) == read_config(source).depends["codec"]["self"]
    figures = json.loads((made.parent / "record.json").read_text())["decoder"]
    assert figures["kept"]
    assert figures["after"] < figures["before"]
    assert figures["steps"] == STEPS
    trained = read_config(made).trained["codec"]
    assert (trained["mel"], trained["mel_before"]) == (figures["after"], figures["before"])
    assert trained["before"] == read_config(source).trained["codec"]
    sound, models = speech(2.0), [bundle.load(str(folder), device="cpu") for folder in (made, source)]
    codes = [model.tokenize(sound)[1] for model in models]
    assert torch.equal(*codes)
    heard = [model.codec.decode(codes[0][None])[0] for model in models]
    assert not torch.equal(*heard)


def test_validation_of_a_decoder_uses_what_recordings_have():
    clips = [Clip(f"{n}", "", "", "", 16000 * n, samples) for n, samples in enumerate((16000, 30000, 25000))]
    corpus = Corpus(np.zeros(60000, np.int16), clips)
    used, length = decoder._validation(corpus, 16000, 320)
    assert (used.clips, length) == (clips[1:2], 29760)
    long = Corpus(corpus.audio, [Clip(f"{n}", "", "", "", n, 50000) for n in range(100)])
    used, length = decoder._validation(long, 16000, 320)
    assert (len(used.clips), length) == (20, 48000)
    assert used.clips[-1].path == "95"


def test_crops_for_the_decoder_stay_within_their_clips():
    audio = np.zeros(100_000, np.int16)
    clips = [Clip("a", "", "", "", 1000, 16000), Clip("b", "", "", "", 60000, 30000)]
    for clip in clips:
        audio[clip.offset : clip.offset + clip.samples] = 10000
    drawn = decoder.crops(Corpus(audio, clips), 50, 15360, np.random.default_rng(0))
    assert drawn.shape == (50, 15360)
    assert (drawn > 0).all()
    assert len(drawn[:, 0].unique()) > 10  # levels differ


def test_the_card_has_the_figures_and_the_samples(made: Path):
    card, record = (made / "README.md").read_text(), json.loads((made.parent / "record.json").read_text())
    assert "of the codec encoder and codebooks are that bundle's" in card
    for stage, figures in {**record["stages"], "decoder": record["decoder"]}.items():
        assert f"| {stage} | {figures['before']:.3f} | {figures['after']:.3f} | {STEPS} |" in card
    assert "consent" in card.lower()
    assert record["watermark_bits"] in card
    for when in ("before", "after"):
        assert f"(sample1.{when}.ogg)" in card
        assert soundfile.info(made / f"sample1.{when}.ogg").duration > 0.4
    assert (made / "LICENSE").read_text() == "free"
    if "training.png" in card:
        assert (made / "training.png").is_file()


def test_killed_or_interrupted_it_goes_on_and_makes_the_same(made: Path, train, tmp_path: Path, monkeypatch, capfd):
    out, update, count = tmp_path / "mine", Trainer.update, 0

    def broken(trainer: Trainer, *given: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:  # of stage 2
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of a step, which is finished
        update(trainer, *given)
        if count in (3 + 4, 3 + 4 + 4):  # of stage 3, of the decoder
            raise SystemExit(9)  # as if killed: what this step changed is lost

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(KeyboardInterrupt):
        train(out)
    assert not out.exists()
    assert count == 3
    for _ in range(2):
        with pytest.raises(SystemExit):
            train(out)
        assert not out.exists()
    with pytest.raises(AudioLMError, match="with other options"):
        train(out, steps=9)
    train(out)
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert same_tensors(out, made)
    assert count == 3 * STEPS + 2  # the killed steps alone were made again
    assert capfd.readouterr().err.count("consent") == 1


def test_a_part_that_becomes_no_better_stays_as_it_was(train, tmp_path: Path, source: Path, monkeypatch):
    monkeypatch.setattr(stages, "PEAK_RATE", 0.0)
    monkeypatch.setattr(decoder, "PEAK_RATE", 0.0)
    record = train(tmp_path / "same", semantic=True)
    assert not any(figures["kept"] for figures in (*record["stages"].values(), record["decoder"]))
    assert list(record["stages"]) == ["semantic", "coarse", "fine"]
    assert same_tensors(tmp_path / "same", source)
    card = (tmp_path / "same" / "README.md").read_text()
    assert card.count("(left unchanged)") == 4
    assert "Tokenizer, codec and detector are that bundle's" in card


def test_the_budget_is_kept_and_validation_ends_a_stage(train, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fitting, "PATIENCE", 1)
    monkeypatch.setattr(stages, "PEAK_RATE", 0.0)
    monkeypatch.setattr(decoder, "PEAK_RATE", 0.0)
    monkeypatch.setattr(fitting, "VALIDATIONS", 50)
    record = train(tmp_path / "soon", steps=0, minutes=2.0)
    assert record["seconds"] < 120
    assert all(figures["minutes"] < 0.5 for figures in (*record["stages"].values(), record["decoder"]))


def test_a_budget_that_is_used_up_is_said_to_be(train, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "SHORTEST", 1e-6)
    record = train(tmp_path / "soon", steps=0, minutes=0.01, decoder=False)
    assert record["decoder"] is None
    assert "coarse: hardly any time is left to train it" in capfd.readouterr().err
    assert all(figures["steps"] == 1 for figures in record["stages"].values())
    assert not damaged(tmp_path / "soon")


def test_on_a_slow_machine_making_tokens_ends_in_time(source: Path, tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", speech(300), RATE)
    found = recordings.listed([str(tmp_path / "long.wav")])
    _, clips = recordings.gather(found, tmp_path / "audio", RATE, True, 3600, lambda *told: None)
    unpack(source, tmp_path / "parts")
    used = iter(np.linspace(0, 1, 8))
    tokens.tokenize(tmp_path, clips, "cpu", lambda share: None, lambda: next(used))
    assert sorted(os.listdir(tmp_path / "tokens")) == ["train_0.safetensors", "valid_0.safetensors"]
    (data,) = load_tokens(tmp_path, "train")
    assert tokens.LEAST <= len(data.semantic) / 25 < 150


@pytest.fixture
def command(audiolm, source: Path):
    return lambda *given: audiolm("train", "--from", source, "--device", "cpu", *given)


def test_what_cannot_work_is_refused_in_a_line(command, tmp_path: Path):
    rate, rng = RATE, np.random.default_rng(0)
    sounds = {
        "silent.wav": np.zeros(150 * rate),
        "second.wav": speech(1.0),
        "music.wav": notes(130),
        "noise.wav": 0.1 * rng.standard_normal(130 * rate),
    }
    for name, samples in sounds.items():
        soundfile.write(tmp_path / name, samples, rate)
    (tmp_path / "empty.wav").touch()
    reasons = {"silent.wav": "silent", "music.wav": "music", "noise.wav": "noisy"}
    for name in sounds:
        code, out, err = command(name, "-o", "mine")
        assert (code, out) == (1, "")
        assert "0.0 minutes of usable recordings: at least 2 are needed" in err.splitlines()[-1]
        lines = [line for line in err.splitlines() if name in line]
        assert lines == [f"audiolm: {name}: left out: {recordings.REASONS[r]}" for n, r in reasons.items() if n == name]
    for name, message in (("empty.wav", "the file is empty"), ("none.wav", "no such file")):
        code, out, err = command(name, "-o", "mine")
        assert (code, out, len([line for line in err.splitlines() if "error" in line])) == (1, "", 1)
        assert message in err
    assert command("second.wav")[0] == 2
    assert command("-o", "mine")[0] == 2
    assert command("-", "-o", "mine")[0] == 2
    assert command("second.wav", "-o", "mine", "--minutes", "0")[0] == 2
    assert not (tmp_path / "mine").exists()
    assert not list(tmp_path.glob(f"*{work.SUFFIX}"))


def test_of_a_mixed_folder_what_is_good_is_used(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens, "MOST_PASSES", 1)
    (folder := tmp_path / "recordings").mkdir()
    sounds = {"good.flac": speech(140), "silent.wav": np.zeros(5 * RATE), "second.wav": speech(0.9)}
    for name, samples in sounds.items():
        soundfile.write(folder / name, samples, RATE)
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("no sound")
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, speech(20, 1), RATE)
    (folder / "cut.wav").write_bytes(whole.read_bytes()[:200_000])
    code, out, err = command("recordings", "-o", "mine", "--steps", "1", "--json")
    assert code == 1
    record = json.loads(out)
    assert (record["recordings"]["recordings"], len(record["unreadable"])) == (4, 2)
    for name in ("empty.wav", "text.mp3", "cut.wav", "silent.wav", "second.wav"):
        assert len([line for line in err.splitlines() if name in line]) == 1
    assert not damaged(tmp_path / "mine")


def test_nothing_that_is_there_is_lost(command, made: Path, source: Path, tmp_path: Path):
    soundfile.write(tmp_path / "second.wav", speech(1.0), RATE)
    shutil.copytree(made, tmp_path / "mine")
    (tmp_path / "folder").mkdir()
    for place, force, message in (
        ("mine", (), "exists already; use --force"),
        ("folder", ("-f",), "is not a bundle"),
        ("second.wav", ("-f",), "is not a bundle"),
        (source, ("-f",), "is the bundle that training starts from"),
        ("none/mine", (), "there is no folder none"),
    ):
        code, _, err = command("second.wav", "-o", place, *force)
        assert code == 1
        assert message in err
    (tmp_path / "mine" / "notes.txt").touch()
    assert "has notes.txt, which is not the bundle's" in command("second.wav", "-o", "mine", "-f")[2]
    check_sums(tmp_path / "mine")


def test_names_have_a_watermark_of_their_own():
    names = [f"voice {n}" for n in range(300)]
    ids = [(watermark.bundle_id(adapt.own_name(name, "base")), watermark.bundle_id(name)) for name in names]
    taken = {watermark.bundle_id(name) for name in ("base", "speech", "piano")}
    assert not {own for own, _ in ids} & taken
    assert all(own == first for own, first in ids if first not in taken)
