"""Mimi behind our border: what it must do, and what the library does by default."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_cli.errors import ModelError
from audiolm_cli.mimi import codec
from audiolm_cli.mimi.codec import Mimi
from audiolm_cli.public.codec import read_codec_config
from tests.helpers.sounds import tone
from tests.helpers.twins import write_mimi

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
FRAME = 1920  # samples


def load(folder: Path, quantizers: int = 4) -> Mimi:
    return Mimi(folder, read_codec_config(folder), quantizers, torch.device("cpu"))


@pytest.fixture(scope="module")
def mimi(twins: Path) -> Mimi:
    return load(twins / "mimi")


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(frames * FRAME, generator=generator)


def test_as_many_codebooks_come_as_the_language_model_has(twins: Path, mimi: Mimi):
    codes, more = mimi.encode(noise(5)), load(twins / "mimi", 7).encode(noise(5))
    assert codes.shape == (4, 5)
    assert torch.equal(codes, more[:4])
    assert mimi.decode(codes).shape == (5 * FRAME,)


def test_a_long_recording_has_the_codes_of_its_beginning(mimi: Mimi):
    """Longer than the window of 20 steps: what comes later must not change what was, nor what is long past."""
    audio = noise(60)
    whole = mimi.encode(audio)
    for frames in (1, 9, 10, 11, 40):
        assert torch.equal(mimi.encode(audio[: frames * FRAME]), whole[:, :frames]), frames
    other = torch.cat([noise(20, 1), audio[20 * FRAME :]])
    later = 20 + mimi.config.lookback + codec.CONVOLUTIONS
    assert not torch.equal(mimi.encode(other)[:, :20], whole[:, :20])
    assert torch.equal(mimi.encode(other)[:, later:], whole[:, later:])


def test_the_window_is_that_of_the_config(twins: Path, tmp_path: Path):
    wide = load(write_mimi(tmp_path / "wide", sliding_window=250))
    narrow = load(write_mimi(tmp_path / "narrow", sliding_window=5))
    audio = noise(30)
    assert torch.equal(wide.encode(audio)[:, :2], narrow.encode(audio)[:, :2])
    assert not torch.equal(wide.encode(audio), narrow.encode(audio))


def test_a_sound_decoded_in_pieces_is_that_decoded_at_once(mimi: Mimi, monkeypatch: pytest.MonkeyPatch):
    codes = torch.randint(2048, (4, 90), generator=torch.Generator().manual_seed(1))
    whole = mimi.model.decode(codes[None]).audio_values[0, 0]
    monkeypatch.setattr(codec, "PIECE_SECONDS", 1)
    pieces = list(mimi.pieces(90))
    made = torch.cat([mimi.decode(codes[:, first:end], start - first) for first, start, end in pieces])
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=0)
    assert len(pieces) > 1
    assert list(itertools.islice(mimi.pieces(math.inf), len(pieces) - 1)) == pieces[:-1]


def test_its_own_rate_and_frames(twins: Path):
    config = read_codec_config(twins / "mimi")
    assert (config.sampling_rate, config.samples_per_frame, config.frame_rate) == (24000, FRAME, 12.5)


def test_a_missing_tensor_is_no_random_one(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = write_mimi(tmp_path / "mimi")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("decoder_transformer"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="missing"):
        load(folder)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ({"hidden_size": 10**9}, "hidden_size must be between"),
        ({"codebook_size": 1024}, "codebook_size must be between"),
        ({"model_type": "encodec"}, "not that of Mimi"),
        ({"use_causal_conv": False}, "use_causal_conv must be true"),
    ],
)
def test_another_codec_is_refused(twins: Path, tmp_path: Path, harm: dict, says: str):
    import json

    value = json.loads((twins / "mimi" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**value, **harm}))
    with pytest.raises(ModelError, match=says):
        read_codec_config(tmp_path)


def test_a_tone_is_decoded_to_full_length(mimi: Mimi):
    audio = torch.from_numpy(tone(1.2, 24000))
    assert mimi.decode(mimi.encode(audio)).numpy().dtype == np.float32
