"""The whole recipe on a minute of synthetic voices: every script runs, resumes, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shutil
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle, int8
from audiolm_cli.bundles.folder import damaged, read_config
from audiolm_cli.codec.soundstream import ResidualQuantizer
from audiolm_cli.config import preset
from audiolm_cli.errors import ModelError
from audiolm_cli.request import ContinueRequest
from audiolm_cli.training import run as whole_run
from audiolm_cli.training import trainer
from audiolm_cli.training.corpora.tokenize import load_tokens
from audiolm_cli.training.parts import codec, detector_data, lm, tokenizer
from audiolm_cli.training.parts.assemble import assemble, unpack
from audiolm_cli.training.recipes import RECIPES, TRAININGS, Recipe
from tests.helpers.bundles import write_parts
from tests.helpers.training import log, run, steps, voice

pytestmark = pytest.mark.slow

MINUTES = 30  # of the recipe, by a clock that goes on by one minute a step
STAGES = ("semantic", "coarse", "fine")


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Less of everything, steps that take equally long, and all in this process."""
    ticks = itertools.count(0, 60)
    in_process = types.SimpleNamespace(run=lambda command, check: run(*command[2:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "time", types.SimpleNamespace(monotonic=lambda: next(ticks)))
        patch.setattr(whole_run, "subprocess", in_process)
        patch.setattr(codec, "UNQUANTIZED_STEPS", 3)
        patch.setattr(tokenizer, "CLUSTERED_TOKENS", 2000)
        patch.setattr(tokenizer, "CHANGED_TOKENS", 500)
        patch.setattr(lm, "BATCH_SECONDS", {"semantic": 40.0, "frames": 20.0, "parallel": 6.0})
        for name, value in {"SECONDS": 2.2, "BATCH": 2, "BATCHES": 5, "VALID_BATCHES": 2}.items():
            patch.setattr(detector_data, name, value)
        patch.setattr(lm, "validation_bits", functools.partial(lm.validation_bits, batches=1))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers with three recordings of 4.2 s each; two of them for validation."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["path\tsplit\tspeaker"]
    for speaker, clip in itertools.product(range(4), range(3)):
        soundfile.write(folder / f"{speaker}-{clip}.wav", voice(speaker, clip, 4.2), 16000)
        lines.append(f"{speaker}-{clip}.wav\t{'train' if speaker < 2 else 'valid'}\ts{speaker}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder


def make(data: Path, folder: Path) -> None:
    """The recipe: `folder`/runs and the bundle `folder`/tiny."""
    common = ("--data", data, "--runs", folder / "runs", "--out", folder / "tiny", "--device", "cpu")
    run("audiolm_cli.training.run", "tiny", *common, "--minutes", MINUTES)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the recipe."""
    folder = tmp_path_factory.mktemp("trained")
    make(data, folder)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def test_the_recipe_makes_a_bundle_that_continues_audio(trained: Path) -> None:
    loaded = bundle.load(str(trained / "tiny"), device="cpu", dtype="float32")
    assert (loaded.config.name, loaded.config.format_version) == ("tiny", 2)
    in_int8 = {
        part
        for part in ("codec", "tokenizer", *STAGES)
        if int8.is_used(load_file(trained / f"tiny/{part}.safetensors"))
    }
    assert in_int8 == {"codec", "tokenizer", *STAGES}
    assert loaded.config.tokens == preset("tiny").tokens
    (result,) = pipeline.continue_(loaded, ContinueRequest(duration=0.2), [pipeline.Prompt(voice(2, 9, 1.0))])
    assert len(result.waveform) == 16000 + 3200
    assert np.isfinite(result.waveform).all()
    assert loaded.detector is not None


def test_every_training_steps_and_says_finite_figures(trained: Path) -> None:
    recipe = RECIPES["tiny"].scaled(MINUTES)
    for name in TRAININGS:
        assert steps(trained / "runs", name) == math.ceil(round(getattr(recipe, name), 3)), name
        lines = log(trained / "runs", name)
        assert lines[-1]["valid"], name
        assert lines[-1]["finished"], name
        losses = [line["loss"] for line in lines if "loss" in line]
        assert losses, name
        assert np.isfinite(losses).all(), name
        assert all(np.isfinite(value) for value in lines[-1].values() if isinstance(value, float)), name
    assert {"bits_reference", "bits_shuffled", "bits_other_speaker"} <= log(trained / "runs", "coarse")[-1].keys()


def test_the_recipe_does_not_do_again_what_is_finished(trained: Path, data: Path, copied: Path) -> None:
    tokens = copied / "runs" / "tokens" / "train_1.safetensors"
    before = tokens.stat().st_mtime_ns
    make(data, copied)
    assert tokens.stat().st_mtime_ns == before
    for name in TRAININGS:
        assert steps(copied / "runs", name) == steps(trained / "runs", name), name
    for part in ("codec", "tokenizer", *STAGES, "detector"):
        contents = [(folder / "tiny" / f"{part}.safetensors").read_bytes() for folder in (trained, copied)]
        assert contents[0] == contents[1], part


def test_training_goes_on_at_the_saved_step(data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--runs", tmp_path, "--device", "cpu", "--recipe", "tiny", "--kind", "waveform")
    small = ("--batch", 4, "--seconds", 0.2, "--resume")
    run("audiolm_cli.training.parts.codec", *common, *small, "--minutes", 5)
    first = log(tmp_path, "codec")
    assert steps(tmp_path, "codec") == 5
    run("audiolm_cli.training.parts.codec", *common, *small, "--minutes", 8)
    state = trainer.load_checkpoint(tmp_path / "codec")
    assert (state["step"], state["seconds"]) == (8, 8 * 60)
    assert {int(moments["step"]) for moments in state["optimizers"][0]["state"].values()} == {8}
    second = log(tmp_path, "codec")[len(first) :]
    assert [line["step"] for line in second if "loss" in line] == [6, 7, 8]
    about = bundle.read_about(tmp_path / "parts" / "codec.safetensors")
    assert about["config"]["kind"] == "waveform"


def test_a_codec_goes_on_from_another_bundles(data: Path, trained: Path, tmp_path: Path) -> None:
    unpack(trained / "tiny", tmp_path / "parts")
    before = load_file(tmp_path / "parts" / "codec.safetensors")
    common = ("--data", data, "--runs", tmp_path, "--device", "cpu", "--recipe", "tiny", "--rate", 0)
    run("audiolm_cli.training.parts.codec", *common, "--minutes", 3, "--warm-start", "--resume")
    after = load_file(tmp_path / "parts" / "codec.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(("encoder.", "decoder.")))
    about = bundle.read_about(tmp_path / "parts" / "codec.safetensors")
    assert {"codec", "decoder"} <= about["trained"]["before"].keys()
    assert about["trained"]["codec"]["steps"] == 3


def test_a_codec_goes_on_with_its_codebooks(data: Path, trained: Path, tmp_path: Path) -> None:
    unpack(trained / "tiny", tmp_path / "parts")
    part = tmp_path / "parts" / "codec.safetensors"
    before = load_file(part)
    common = ("--data", data, "--runs", tmp_path, "--device", "cpu", "--further", "--resume")
    for contrary in (("--decoder-only",), ("--warm-start",), ("--partials", "--noise")):
        with pytest.raises(SystemExit):
            run("audiolm_cli.training.parts.codec", *common, *contrary)
    run("audiolm_cli.training.parts.codec", *common, "--minutes", 3, "--partials")
    after, figures = load_file(part), log(tmp_path, "codec_further")
    books = "quantizer.codebooks"
    assert not torch.equal(before[books], after[books])
    assert float((before[books] - after[books]).norm() / before[books].norm()) < 0.5
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
    assert 0 < figures[0]["partials"] < 10
    assert bundle.read_about(part)["trained"]["codec_further"]["steps"] == 3


def test_a_detector_of_other_weights_is_refused(copied: Path) -> None:
    file = copied / "runs" / "parts" / "codec.safetensors"
    about, tensors = bundle.read_about(file), load_file(file)
    for name in tensors:
        if name.startswith("decoder.") and tensors[name].is_floating_point():  # scales of what is in int8, too
            tensors[name] *= 2  # codes stay valid, but not what is made of them
    bundle.write_tensors(file, tensors, {"about": json.dumps(about)})
    with pytest.raises(ModelError, match=r"detector\.safetensors was trained on the outputs of other weights"):
        assemble(file.parent, "tiny", copied / "tiny")
    assert damaged(copied / "tiny") == []


def test_a_bundle_can_end_with_stage_2(trained: Path, data: Path, copied: Path) -> None:
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu", "--recipe", "tiny")
    run("audiolm_cli.training.parts.lm", *common, "--minutes", 2, "--stage", "coarse", "--coarse", 6)
    parts, six_quantizers = copied / "runs" / "parts", Recipe("tiny", "piano", quantizers=6, prompt_seconds=4.0)
    with pytest.raises(ModelError, match=r"detector\.safetensors was trained on the tokens of another codec"):
        assemble(parts, "six", copied / "six", recipe=six_quantizers)
    (parts / "detector.safetensors").unlink()
    assemble(parts, "six", copied / "six", recipe=six_quantizers)
    whole, six = (bundle.load(str(f), device="cpu", dtype="float32") for f in (trained / "tiny", copied / "six"))
    assert (six.config.tokens.quantizers, six.config.tokens.coarse, six.config.prompt_seconds) == (6, 6, 4.0)
    assert six.fine is None
    assert Recipe(**six.config.trained["recipe"]) == six_quantizers
    sound = voice(2, 9, 1.0)
    assert torch.equal(pipeline.encode(six, sound).codes, pipeline.encode(whole, sound).codes[:6])
    (result,) = pipeline.continue_(six, ContinueRequest(duration=0.2), [pipeline.Prompt(sound)])
    assert result.codes.shape == (6, 60)
    assert six.config.domain == "piano"
    assemble(parts, "six", copied / "six", {"familiar_bits": 9.0, "prompt_seconds": 5.0}, six_quantizers)
    assemble(parts, "six", copied / "six", recipe=six_quantizers)
    again = bundle.read_config(copied / "six")
    assert (again.familiar_bits, again.prompt_seconds) == (9.0, 4.0)  # what neither gives stays
    assemble(parts, "two", copied / "two", recipe=Recipe("tiny", fine=0))
    two = bundle.load(str(copied / "two"), device="cpu", dtype="float32")
    assert (two.config.tokens.quantizers, two.config.sampled_quantizers, two.fine) == (12, 6, None)
    assert len(pipeline.encode(two, sound).codes) == 12
    (result,) = pipeline.continue_(two, ContinueRequest(duration=0.2), [pipeline.Prompt(sound)])
    assert result.codes.shape == (6, 60)


def test_the_decoder_learns_from_discriminators_and_codes_stay_valid(trained: Path, data: Path, copied: Path) -> None:
    """What the recipe's decoder step left alone and what it changed; its opponent goes on where it stopped."""
    codec_before = trainer.load_checkpoint(trained / "runs" / "codec")["module"]
    state = trainer.load_checkpoint(trained / "runs" / "decoder")
    for name, tensor in state["module"].items():
        if name.startswith(("codec.encoder", "codec.quantizer")):
            assert torch.equal(tensor.bfloat16(), codec_before[name].bfloat16()), name
    changed = [name for name in state["module"] if name.startswith("codec.decoder") and name.endswith("weight")]
    assert changed
    assert not any(torch.equal(state["module"][name], codec_before[name]) for name in changed)
    assert {"discriminators", "adversarial", "features"} <= log(trained / "runs", "decoder")[0].keys()
    taken = {int(moments["step"]) for moments in state["extra"]["discriminators"]["optimizer"]["state"].values()}
    assert taken == {state["step"]}
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu", "--decoder-only", "--resume")
    run("audiolm_cli.training.parts.codec", *common, "--minutes", state["step"] + 2)
    after = trainer.load_checkpoint(copied / "runs" / "decoder")["extra"]["discriminators"]["optimizer"]["state"]
    assert {int(moments["step"]) for moments in after.values()} == {state["step"] + 2}


def test_a_decoder_gets_noise_and_codes_stay_valid(data: Path, copied: Path) -> None:
    part = copied / "runs" / "parts" / "codec.safetensors"
    before = load_file(part)
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu", "--decoder-only", "--windows", "--noise")
    shutil.rmtree(copied / "runs" / "decoder")
    run("audiolm_cli.training.parts.codec", *common, "--minutes", 3, "--batch", 2)
    after = load_file(part)
    assert bundle.read_about(part)["config"]["noise"]
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("encoder", "quantizer")))
    assert after["decoder.noise.weight"].any()
    assert {"energy", "waveform"} <= log(copied / "runs", "decoder")[0].keys()


def test_processes_share_the_recordings_among_them(data: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_tokens(copied / "runs", "train")[0]
    shutil.rmtree(copied / "runs" / "tokens")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        common = ("--data", data, "--runs", copied / "runs", "--device", "cpu", "--passes", 1)
        run("audiolm_cli.training.corpora.tokenize", *common)
    assert len(load_tokens(copied / "runs", "valid")) == 1
    shares = load_tokens(copied / "runs", "train")
    assert sorted(t.length for share in shares for t in share.tracks) == sorted(t.length for t in whole.tracks)
    assert all(share.tracks for share in shares)


def test_the_best_state_survives_a_resumption(data: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = itertools.count(1)
    monkeypatch.setattr(lm, "validation_bits", lambda *_, **__: {"bits": float(next(worse))})
    shutil.rmtree(copied / "runs" / "semantic")
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu", "--recipe", "tiny", "--stage", "semantic")
    for minutes in (12, 15):
        run("audiolm_cli.training.parts.lm", *common, "--resume", "--minutes", minutes)
        about = bundle.read_about(copied / "runs" / "parts" / "semantic.safetensors")
        assert (about["trained"]["steps"], about["trained"]["valid_bits"]) == (minutes, 1.0)


def test_training_goes_on_from_a_bundle(data: Path, trained: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run("audiolm_cli.training.parts.assemble", "--unpack", "--runs", runs, "--out", trained / "tiny")
    for part in ("codec", "tokenizer", *STAGES):
        file = runs / "parts" / f"{part}.safetensors"
        tensors, wanted = (load_file(folder / file.name) for folder in (file.parent, trained / "tiny"))
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
        assert bundle.read_about(file)["config"] == bundle.read_about(trained / "runs" / "parts" / file.name)["config"]
    again = ("--runs", runs, "--name", "tiny", "--out", tmp_path / "again", "--recipe", "tiny")
    run("audiolm_cli.training.parts.assemble", *again)
    assert read_config(tmp_path / "again").trained["recipe"] == dataclasses.asdict(RECIPES["tiny"])
    shutil.copytree(trained / "runs" / "tokens", runs / "tokens")
    common = ("--data", data, "--runs", runs, "--device", "cpu", "--recipe", "tiny", "--warm-start", "--resume")
    lm_options = ("audiolm_cli.training.parts.lm", *common, "--rate", 0, "--stage", "semantic", "--minutes")
    for minutes in (1, 2):  # a second run goes on from the first one, not from the part that it left
        run(*lm_options, minutes)
        about = bundle.read_about(runs / "parts" / "semantic.safetensors")
        earlier = bundle.read_about(trained / "runs" / "parts" / "semantic.safetensors")["trained"]
        assert about["trained"]["before"] == earlier
        assert about["trained"]["steps"] == minutes
        tensors = load_file(runs / "parts" / "semantic.safetensors")
        assert all(
            torch.equal(tensor, tensors[name])
            for name, tensor in load_file(trained / "tiny/semantic.safetensors").items()
        )
    run("audiolm_cli.training.parts.tokenizer", *common, "--minutes", 1)
    assert log(runs, "tokenizer")[-1]["round"] == 2  # the first labels are the old tokenizer's
    with pytest.raises(ModelError, match="another tokenizer"):
        assemble(runs / "parts", "tiny", tmp_path / "tiny")
    before = load_tokens(runs, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResidualQuantizer, "encode", None)  # the codec is the same: its codes are kept
        run(
            "audiolm_cli.training.corpora.tokenize",
            "--data",
            data,
            "--runs",
            runs,
            "--device",
            "cpu",
            "--passes",
            len(before),
        )
    for old, new in zip(before, load_tokens(runs, "train"), strict=True):
        assert torch.equal(old.codes, new.codes)
        assert old.sources["codec"] == new.sources["codec"]
        assert old.sources["tokenizer"] != new.sources["tokenizer"]


def test_new_weights_keep_the_model_card(trained: Path, copied: Path) -> None:
    for name in ("README.md", "example.ogg", "training.png", "notes.txt"):
        (copied / "tiny" / name).write_text(name)
    assemble(trained / "runs" / "parts", "tiny", copied / "tiny")
    assert not (copied / "tiny" / "notes.txt").exists()
    sums = (copied / "tiny" / "SHA256SUMS").read_text()
    for name in ("README.md", "example.ogg", "training.png"):
        assert (copied / "tiny" / name).read_text() == name
        assert f"  {name}\n" in sums


def test_a_mixture_is_refused(data: Path, copied: Path, tmp_path: Path) -> None:
    """Parts and tokens that came from different codecs."""
    write_parts(tmp_path / "other", preset("tiny"), seed=5)
    parts = copied / "runs" / "parts"
    shutil.copy(tmp_path / "other" / "codec.safetensors", parts)
    with pytest.raises(ModelError, match="trained on the tokens of another codec"):
        assemble(parts, "tiny", tmp_path / "mixture")
    assert not (tmp_path / "mixture").exists()
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu")
    run("audiolm_cli.training.corpora.tokenize", *common, "--passes", 1)  # the second one stays as it was
    with pytest.raises(ModelError, match="made with different codecs"):
        run("audiolm_cli.training.parts.lm", *common, "--stage", "coarse", "--recipe", "tiny", "--minutes", 1)


def test_stage_1_learns_from_synthetic_speech_as_well(copied: Path, data: Path) -> None:
    common = ("--data", data, "--runs", copied / "runs", "--device", "cpu")
    for _ in range(2):  # what is there is kept
        run("audiolm_cli.training.corpora.tokenize", *common, "--passes", 2, "--synthetic", data)
        files = sorted((copied / "runs" / "tokens").glob("synthetic*"))
        assert [file.name for file in files] == [
            "synthetic-valid_0_0000.safetensors",
            "synthetic_0_0000.safetensors",
            "synthetic_1_0000.safetensors",
        ]
    read = load_tokens(copied / "runs", "synthetic")
    assert all(len(tokens.semantic) > 50 and not tokens.codes.numel() for tokens in read)
    assert not torch.equal(read[0].semantic, read[1].semantic)
    shutil.rmtree(copied / "runs" / "semantic")
    run("audiolm_cli.training.parts.lm", *common, "--stage", "semantic", "--recipe", "tiny", "--minutes", 3)
    last = log(copied / "runs", "semantic")[-1]
    assert last["finished"]
    assert np.isfinite([last["bits"], last["bits_synthetic"]]).all()
