"""The tokenizer's teacher, what its student hears, and the student."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, read_tensors
from audiolm_cli.config import TokenizerConfig, TokenSpec
from audiolm_cli.errors import InputError, ModelError
from audiolm_cli.fields import from_json
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import augmentation
from audiolm_cli.training.corpora.augmentation import Changes
from audiolm_cli.training.corpora.data import load_corpus
from audiolm_cli.training.corpora.piano_notes import write_notes
from audiolm_cli.training.parts import student, teacher
from audiolm_cli.training.parts.student import TOKEN, UNKNOWN, Lesson
from audiolm_cli.training.trainer import optimizers

WIDTH, HEADS = 16, 2


def arrays(layers: int = 2) -> dict[str, np.ndarray]:
    """Random weights of a small Whisper encoder, named as CTranslate2 names them."""
    random = np.random.default_rng(0)
    shapes = {
        "conv1/weight": (WIDTH, 80, 3), "conv1/bias": (WIDTH,), "conv2/weight": (WIDTH, WIDTH, 3),
        "conv2/bias": (WIDTH,), "position_encodings/encodings": (1500, WIDTH),
        "layer_norm/gamma": (WIDTH,), "layer_norm/beta": (WIDTH,),
    }  # fmt: skip
    for n in range(layers):
        for name, (rows, columns) in {
            "self_attention/linear_0": (3 * WIDTH, WIDTH), "self_attention/linear_1": (WIDTH, WIDTH),
            "ffn/linear_0": (4 * WIDTH, WIDTH), "ffn/linear_1": (WIDTH, 4 * WIDTH),
        }.items():  # fmt: skip
            shapes |= {f"layer_{n}/{name}/weight": (rows, columns), f"layer_{n}/{name}/bias": (rows,)}
        for name in ("self_attention", "ffn"):
            shapes |= {f"layer_{n}/{name}/layer_norm/{part}": (WIDTH,) for part in ("gamma", "beta")}
    made = {f"encoder/{k}": random.normal(0, 0.3, shape).astype(np.float16) for k, shape in shapes.items()}
    return {**made, "decoder/embeddings": np.zeros((4, WIDTH), np.float16)}


def ctranslate2(content: dict[str, np.ndarray], aliases: dict[str, str], version: int = 6) -> bytes:
    """A model file of CTranslate2."""
    text = lambda s: struct.pack("<H", len(s) + 1) + s.encode() + b"\0"  # noqa: E731
    codes = {np.dtype(kind): code for code, kind in teacher._TYPES.items()}
    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(content))
    for name, value in content.items():
        data += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        data += struct.pack("<BI", codes[value.dtype], value.nbytes) + value.tobytes()
    return data + struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())


@pytest.fixture
def encoder() -> teacher.WhisperEncoder:
    return teacher.WhisperEncoder(arrays(), HEADS)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Twelve recordings of training and four of validation, with a manifest."""
    random, rows = np.random.default_rng(0), ["path\tsplit\tspeaker\tcorpus\tseconds\ttext"]
    for n in range(16):
        time = np.arange(int(random.uniform(1, 5) * RATE)) / RATE
        sound = 0.1 * np.sin(2 * np.pi * (200 + 150 * (time // 0.3 % 4)) * time) + 0.01 * random.normal(size=len(time))
        soundfile.write(tmp_path / f"{n}.wav", sound, RATE)
        rows.append(f"{n}.wav\t{'valid' if n % 4 == 0 else 'train'}\ts{n}\tc\t{len(time) / RATE:.3f}\t")
    (tmp_path / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_model_file_is_read():
    content = arrays(1)
    found = teacher.read_ctranslate2(ctranslate2(content, {"decoder/projection": "decoder/embeddings"}))
    assert found.keys() == {*content, "decoder/projection"}
    assert all(np.array_equal(found[name], value) for name, value in content.items())
    with pytest.raises(InputError, match="old version"):
        teacher.read_ctranslate2(ctranslate2(content, {}, version=3))


def test_a_teacher_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(teacher.PACKAGES, "base", {"no_such_package": "model.bin"})
    with pytest.raises(ImportError, match="extra `teach`"):
        teacher.load_encoder("base")


def test_windows_give_every_token_once(encoder: teacher.WhisperEncoder):
    for seconds in (0.05, 1.0, 7.99, 8.0, 8.01, 19.3):
        samples = np.random.default_rng(1).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
        states = encoder.tokens(samples, 2)
        assert states.shape == (len(samples) // TOKEN, WIDTH)
        assert torch.isfinite(states).all()
    longer = encoder.tokens(np.concatenate([samples, samples]), 2)
    common = round(7.0 * RATE) // TOKEN  # one window hears the same but for the end, which attention spreads
    assert torch.allclose(states[:common], longer[:common], atol=0.2)


def test_a_token_is_centred_in_its_samples(encoder: teacher.WhisperEncoder):
    samples = np.zeros(4 * RATE, np.float32)
    samples[50 * TOKEN : 51 * TOKEN] = 0.5 * np.random.default_rng(0).normal(size=TOKEN)
    silence = np.zeros_like(samples)
    for name in ("conv1/weight", "conv2/weight"):  # that weigh all times alike
        encoder.weights[name] = encoder.weights[name].mean(-1, keepdim=True).expand(-1, -1, 3)
    mel, quiet = (encoder.log_mel(torch.from_numpy(x)) for x in (samples, silence))
    change = (encoder.states(mel[None], 0) - encoder.states(quiet[None], 0)).abs().sum(-1)[0]
    change = (change - change.median()).clamp(min=0)  # the floor follows the loudest moment, everywhere
    frames = torch.arange(len(change))
    assert float((frames * change).sum() / change.sum()) == pytest.approx(101, abs=1)  # 50.5 tokens of two frames


@pytest.mark.parametrize("rate", [0.9, 1.0, 1.15])
def test_changes_keep_the_clock(rate: float):
    samples = np.zeros(3 * RATE, np.float32)
    samples[RATE : RATE + 160] = np.hanning(160)
    how = Changes(rate=(rate, rate + 1e-9), rate_chance=1, room_chance=1, noise_chance=0)
    heard, found = augmentation.changed(samples, np.random.default_rng(0), how, 2 * RATE)
    assert found == pytest.approx(rate, rel=0.02)  # a length whose Fourier transform is fast
    assert len(heard) == 2 * RATE
    onset = int(np.flatnonzero(np.abs(heard) > 0.2 * np.abs(heard).max())[0])
    assert onset * found == pytest.approx(RATE, abs=400)


def test_a_row_names_what_it_holds(recordings: Path, tmp_path: Path):
    corpus = load_corpus(recordings, "train", RATE, tmp_path / "cache")
    lesson = Lesson(corpus, tmp_path / "labels.npy")
    assert len(lesson.known()) == 0
    power = [
        np.square(corpus.samples(c)[: c.samples // TOKEN * TOKEN].reshape(-1, TOKEN)).mean(1) for c in corpus.clips
    ]
    lesson.labels[:] = (np.concatenate(power)[:, None] * 1e6).astype(np.int16)  # labels that say how loud it is
    rng = np.random.default_rng(0)
    for _ in range(5):
        audio, labels = lesson.row(150, rng, None)
        known = labels[:, 0] != UNKNOWN
        assert known.mean() > 0.9
        loud = np.square(audio.reshape(-1, TOKEN)).mean(1) * 1e6
        assert np.abs(loud[known] - labels[known, 0]).max() <= 1
    audio, labels = lesson.row(150, rng, Changes())
    assert audio.shape == (150 * TOKEN,)
    assert (labels != UNKNOWN).any()
    student.cut(audio, labels, rng)
    end = np.flatnonzero(labels[:, 0] != UNKNOWN)[-1] + 1
    assert not audio[end * TOKEN :].any() or (labels[end:, 0] == UNKNOWN).all()


@pytest.mark.slow
def test_a_student_learns_resumes_and_ships(
    recordings: Path, tmp_path: Path, encoder: teacher.WhisperEncoder, monkeypatch: pytest.MonkeyPatch, steps_take
):
    steps_take(0.5)
    monkeypatch.setattr(student, "SIZES", (8, 16))
    monkeypatch.setattr(teacher, "load_encoder", lambda name: encoder)
    monkeypatch.setattr(student, "kmeans", lambda points, size: points[:: max(1, len(points) // size)][:size].clone())
    runs = tmp_path / "runs"
    command = ["student", "--data", str(recordings), "--runs", str(runs), "--recipe", "tiny", "--layer", "2"]
    command += ["--synthetic", str(recordings), "--hours", "0.005", "--batch", "4", "--seconds", "2", "--resume"]

    def run(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        student.main()

    run("--labels-only")
    labels = np.load(runs / "teacher" / "train.npy")
    assert (labels != UNKNOWN).all()
    assert not (runs / "student").exists()
    monkeypatch.setattr(teacher, "load_encoder", lambda name: pytest.fail("labelled again"))
    monkeypatch.setattr(student, "SIZES", (8, 16))
    run("--minutes", "0.1", "--clusters", "8")
    file = runs / "parts" / "tokenizer.safetensors"
    about = read_about(file)
    assert about["trained"]["teacher"] == "Whisper base, layer 2"
    config = from_json(TokenizerConfig, about["config"], "tokenizer")
    tokenizer = SemanticTokenizer(config, from_json(TokenSpec, about["tokens"], "tokens"))
    stored = read_tensors(file, tokenizer.state_dict())
    assert int8.is_used(stored)
    tokenizer.load_state_dict(int8.restored(stored))
    tokens = tokenizer.eval().tokenize(torch.randn(1, 5 * TOKEN))
    assert tokens.shape == (1, 5)
    assert int(tokens.max()) < 8
    steps = about["trained"]["steps"]
    run("--minutes", "0.1", "--clusters", "16", "--matrices", "bfloat16")  # the same run, the other head
    assert not int8.is_used(load_file(file))
    about = read_about(file)
    assert about["tokens"]["semantic_vocabulary"] == 16
    assert about["trained"]["steps"] == steps


@pytest.mark.slow
def test_a_student_learns_notes(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_take):
    steps_take(0.5)
    monkeypatch.setattr(student, "SIZES", (16, 32))
    random = np.random.default_rng(0)
    rows = [line.split("\t") for line in (recordings / "manifest.tsv").read_text().splitlines()[1:]]
    onsets = np.arange(0.1, 5, 0.2)
    written = []
    for row in rows:
        own = onsets[onsets < float(row[4])]
        keys, velocities = random.integers(40, 80, len(own)), random.integers(30, 90, len(own))
        written.append((row[0], np.stack([own, own + 0.15, keys, velocities], 1).astype(np.float32)))
    write_notes(recordings, written)
    monkeypatch.setattr(teacher, "load_encoder", lambda name: pytest.fail("a teacher of speech"))
    common = ["--data", str(recordings), "--runs", str(tmp_path), "--recipe", "tiny", "--teacher", "notes"]
    more = ["--batch", "4", "--seconds", "2", "--minutes", "0.2", "--clusters", "16"]
    monkeypatch.setattr(sys, "argv", ["student", *common, *more])
    student.main()
    labels = np.load(tmp_path / "teacher" / "train.npy")
    attacks = (labels >= [1, 2]).mean(0)
    assert attacks[0] == attacks[1] == pytest.approx(0.2, abs=0.02)
    about = read_about(tmp_path / "parts" / "tokenizer.safetensors")
    assert about["trained"]["teacher"] == "notes"
    config = from_json(TokenizerConfig, about["config"], "tokenizer")
    tokenizer = SemanticTokenizer(config, from_json(TokenSpec, about["tokens"], "tokens")).eval()
    stored = read_tensors(tmp_path / "parts" / "tokenizer.safetensors", tokenizer.state_dict())
    tokenizer.load_state_dict(int8.restored(stored))
    corpus = load_corpus(recordings, "train", RATE, tmp_path / "audio")
    found = torch.cat([tokenizer.tokenize(torch.from_numpy(corpus.samples(c))[None])[0] for c in corpus.clips])
    assert float((found >= 1).float().mean()) == pytest.approx(0.2, abs=0.1)  # however little was learnt


def test_classes_have_no_directions():
    with pytest.raises(ModelError, match="directions"):
        from_json(TokenizerConfig, {"units": "classes", "directions": 8}, "tokenizer")


def test_heads_learn_by_adamw():
    taught = student.Student(TokenizerConfig(width=16, heads=2, feedforward=32, layers=1, units="classes"))
    adam, muon = optimizers(taught, 1e-3, (0.9, 0.98), 0.0)
    trained = [{id(p) for group in o.param_groups for p in group["params"]} for o in (adam, muon)]
    assert trained[1]
    assert all(id(head.weight) in trained[0] for head in taught.heads.values())
