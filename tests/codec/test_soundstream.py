"""All kinds of SoundStream: causal, piecewise equal to one piece, every prefix of the quantizers decodable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audiolm_cli.codec.autoencoders import NOISE_FRAMES, SpectralDecoder, State, noise_spectra
from audiolm_cli.codec.soundstream import PIECE_FRAMES, Decoding, SoundStream
from audiolm_cli.config import SpectralConfig, TokenSpec, WaveformConfig

SPEC = TokenSpec(codebook_size=32)
KINDS: dict[str, SpectralConfig | WaveformConfig] = {
    "spectral": SpectralConfig(width=32, encoder_blocks=2, decoder_blocks=2, latent=8),
    "noise": SpectralConfig(width=32, encoder_blocks=2, decoder_blocks=2, latent=8, noise=True),
    "waveform": WaveformConfig(encoder_channels=3, decoder_channels=3, latent=8),
}


@pytest.fixture(params=KINDS)
def codec(request: pytest.FixtureRequest) -> SoundStream:
    torch.manual_seed(1)
    return SoundStream(KINDS[request.param], SPEC).eval()


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(1, 320 * frames, generator=torch.Generator().manual_seed(seed))


def test_shapes(codec: SoundStream) -> None:
    codes = codec.encode(noise(30))
    assert codes.shape == (1, 12, 30)
    assert codes.dtype == torch.int64
    for quantizers in (1, 4, 12):
        assert codec.decode(codes[:, :quantizers]).shape == (1, 320 * 30)


def test_pieces_equal_one_piece(codec: SoundStream) -> None:
    audio = noise(2 * PIECE_FRAMES + 37)
    with torch.inference_mode():
        codes = codec.encode(audio)
        assert torch.equal(codes, codec.quantizer.encode(codec.encoder(audio, State())))
        whole = codec.reconstruct(codec.quantizer.decode(codes))
        assert (codec.decode(codes) - whole).abs().max() < 1e-4


def test_what_begins_alike_is_decoded_once(codec: SoundStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives what each gives alone, however long the beginning is."""
    codes = torch.randint(32, (3, 12, PIECE_FRAMES + 60), generator=torch.Generator().manual_seed(3))
    decoded: list[int] = []
    inside = codec.quantizer.decode

    def counting(part: torch.Tensor) -> torch.Tensor:
        decoded.append(part.shape[-1])
        return inside(part)

    monkeypatch.setattr(codec.quantizer, "decode", counting)
    for known in (PIECE_FRAMES + 20, 30):
        codes[..., :known] = codes[:1, :, :known]
        alone = []
        for code in codes:
            one = Decoding(codec)
            parts = [*one.push(code[None, :, :known]), *one.push(code[None, :, known:])]
            alone.append(torch.cat([*parts, one.finish()], -1))
        decoded.clear()
        first = Decoding(codec)
        beginning = list(first.push(codes[:1, :, :known]))
        for code, expected in zip(codes, alone, strict=True):
            counted: list[float] = []
            copy = first.copy()
            rest = [*copy.push(code[None, :, known:], counted.append), copy.finish()]
            assert torch.equal(torch.cat([*beginning, *rest], -1), expected)
            assert sum(counted) == codes.shape[-1] - known
        assert sum(decoded) == known + 3 * (codes.shape[-1] - known)
    assert not torch.equal(alone[0], alone[1])
    assert all((audio - codec.decode(code[None])).abs().max() < 1e-5 for audio, code in zip(alone, codes, strict=True))


def test_frames_overlap_in_one_order_wherever_pieces_end() -> None:
    decoder = SoundStream(KINDS["spectral"], SPEC).decoder
    assert isinstance(decoder, SpectralDecoder)
    frames = torch.randn(1, 50, decoder.size, generator=torch.Generator().manual_seed(4))
    power = frames.square()
    found = []
    for length in (50, 1, 2, 17):
        state = State()
        parts = zip(frames.split(length, 1), power.split(length, 1), strict=True)
        pieces = [decoder._overlap_add(*part, state) for part in parts]
        found.append(torch.cat([*pieces, decoder.flush(state)], -1))
    assert found[0].shape == (1, 50 * decoder.hop + decoder.delay)
    assert all(torch.equal(audio, found[0]) for audio in found)


def test_codes_of_a_beginning_do_not_depend_on_what_follows(codec: SoundStream) -> None:
    audio = noise(PIECE_FRAMES + 50)
    assert torch.equal(codec.encode(audio[:, : 320 * 90]), codec.encode(audio)[..., :90])


def test_a_sample_depends_on_codes_up_to_the_stated_look_ahead(codec: SoundStream) -> None:
    codes = torch.randint(32, (1, 12, 60), generator=torch.Generator().manual_seed(2))
    changed = codes.clone()
    changed[..., 40] = (changed[..., 40] + 1) % 32
    different = (codec.decode(codes) != codec.decode(changed))[0].nonzero()
    assert 320 * (40 - codec.lookahead) <= int(different[0]) < 320 * 41


def test_an_impulse_is_not_shifted_by_the_transform() -> None:
    """Analysis and synthesis of the spectral kind agree about time: an identity in between returns the impulse."""
    decoder = SoundStream(KINDS["spectral"], SPEC).decoder
    assert isinstance(decoder, SpectralDecoder)
    frames = torch.zeros(1, 20, decoder.size)
    window = torch.hann_window(decoder.size)
    at = 320 * 10 + 5
    for f in range(20):
        place = at + decoder.delay - 320 * f
        if 0 <= place < decoder.size:
            frames[0, f, place] = window[place] ** 2
    state = State()
    audio = decoder._overlap_add(frames, window.square().expand(1, 20, -1), state)
    audio = torch.cat([audio, decoder.flush(state)], -1)[0, decoder.delay :]
    assert int(audio.argmax()) == at
    assert audio.max() == pytest.approx(1.0, abs=1e-5)


def test_more_quantizers_come_closer() -> None:
    torch.manual_seed(0)
    codec = SoundStream(KINDS["spectral"], SPEC)
    latents = torch.randn(1, 50, 8)
    codec.quantizer.codebooks.mul_(torch.logspace(0, -1.5, 12)[:, None, None])
    codes = codec.quantizer.encode(latents)
    errors = [float((latents - codec.quantizer.decode(codes[:, :q])).square().mean()) for q in (1, 4, 8, 12)]
    assert errors == sorted(errors, reverse=True)


def test_a_batch_is_decoded_as_each_alone(codec: SoundStream) -> None:
    codes = torch.randint(32, (3, 12, 70), generator=torch.Generator().manual_seed(4))
    together = codec.decode(codes)
    assert together.shape == (3, 70 * codec.hop)
    for audio, code in zip(together, codes, strict=True):
        assert (audio - codec.decode(code[None])[0]).abs().max() < 1e-4


def test_the_noise_is_white_and_the_same_everywhere() -> None:
    spectra = noise_spectra(1280, 320, torch.device("cpu"))
    power = spectra.abs().square()
    assert spectra.shape == (NOISE_FRAMES, 641)
    assert power[:, 1:-1].mean(0).sub(1).abs().max() < 0.4  # 4 overlapping frames see much the same
    assert power.mean() == pytest.approx(1, abs=0.01)
    assert power.mean(1).sub(1).abs().max() < 0.25
    again = noise_spectra.__wrapped__(4, 2, torch.device("cpu"))[0]  # from the first samples of the hash alone
    first = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC], np.float64)
    window = np.hanning(5)[:4]
    expected = np.fft.rfft((first / 2**63 - 1) * np.sqrt(3) * window / np.sqrt(np.square(window).sum()))
    assert np.abs(again.numpy() - expected).max() < 1e-6


def test_noise_belongs_to_the_frame() -> None:
    """The same codes give the same sound; a frame later they do not."""
    torch.manual_seed(1)
    codec = SoundStream(KINDS["noise"], SPEC).eval()
    latents = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        here, again, later = (codec.reconstruct(latents, first) for first in (7, 7 + NOISE_FRAMES, 8))
    assert torch.equal(here, again)
    assert (here - later).abs().max() > 0.01
