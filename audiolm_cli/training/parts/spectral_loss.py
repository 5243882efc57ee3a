"""The codec's reconstruction loss: distances of spectrograms, and where a recording is quiet."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.audio.mel import mel_filters

# STFT window (samples at 16 kHz) and mel bins: few enough that none is empty
MEL_SCALES = ((64, 6), (128, 12), (256, 28), (512, 64), (1024, 112), (2048, 160))
MAGNITUDE_WEIGHT = 2.0  # beside the log magnitudes; without it loud parts stay blurred: PESQ-wb 1.72 instead of above 2
LINEAR_WEIGHT = 2.0  # of log magnitudes bin by bin, which tell noise from a pattern, beside mel bands
PARTIALS_WINDOW = 4096  # samples: bins of 3.9 Hz
LEVEL_WINDOW = 640  # samples
BELOW_SPEECH, ALWAYS_QUIET = 25.0, -48.0  # dB below the loudest part of a crop; dB of full scale


class MelLoss(nn.Module):
    """Distance of magnitudes and log magnitudes over several mel spectrograms; each step samples some of them. With
    `partials` also of log magnitudes bin by bin, in long windows."""

    def __init__(self, rate: int, partials: bool = False):
        super().__init__()
        self.has_partials = partials
        self.register_buffer(f"window_{PARTIALS_WINDOW}", torch.hann_window(PARTIALS_WINDOW))
        for window, bins in MEL_SCALES:
            self.register_buffer(f"banks_{window}", mel_filters(window // 2 + 1, bins, rate))
            self.register_buffer(f"window_{window}", torch.hann_window(window))

    def magnitudes(self, audio: Tensor, window: int) -> Tensor:
        """`[B, frames, window // 2 + 1]`"""
        shape = self.get_buffer(f"window_{window}")
        spectrum = torch.stft(audio, window, window // 4, window, shape, return_complex=True)
        return torch.view_as_real(spectrum).square().sum(-1).add(1e-9).sqrt().transpose(1, 2)

    def distance(self, a: Tensor, b: Tensor, window: int) -> Tensor:
        """Of two mel spectrograms `[B, frames, bins]`: `[B, frames]`."""
        return MAGNITUDE_WEIGHT * (a - b).abs().mean(-1) + _log_distance(a, b, window)

    def forward(self, wanted: Tensor, got: Tensor, scales: int = len(MEL_SCALES)) -> Tensor:
        loss = wanted.new_zeros(())
        for window, _ in random.sample(MEL_SCALES, scales):
            banks = self.get_buffer(f"banks_{window}")
            a, b = (self.magnitudes(audio, window) @ banks for audio in (wanted, got))
            loss = loss + self.distance(a, b, window).mean()
        return loss / scales

    def partials(self, wanted: Tensor, got: Tensor) -> Tensor:
        """Distance bin by bin over PARTIALS_WINDOW, which resolves the partials of notes."""
        a, b = (self.magnitudes(audio, PARTIALS_WINDOW) for audio in (wanted, got))
        return _log_distance(a, b, PARTIALS_WINDOW).mean()

    def energy(self, wanted: Tensor, first: Tensor, second: Tensor, quiet: Tensor, scales: int) -> Tensor:
        """The distance from `wanted` of two draws of the decoder, `first` and `second`, `[B, T]`; where `quiet` (`[B,
        T]`, 0 to 1), as a generalised energy distance."""
        loss = wanted.new_zeros(())
        for window, _ in random.sample(MEL_SCALES, scales):
            banks = self.get_buffer(f"banks_{window}")
            sizes = [self.magnitudes(audio, window) for audio in (wanted, first, second)]
            mels = [size @ banks for size in sizes]
            share = _least(quiet, window, sizes[0].shape[1])
            for a, b, weight in ((0, 1, 0.5), (0, 2, 0.5), (1, 2, -0.5 * share)):
                linear = share * _log_distance(sizes[a], sizes[b], window)
                loss = loss + (weight * (self.distance(mels[a], mels[b], window) + LINEAR_WEIGHT * linear)).mean()
        return loss / scales


def _least(quiet: Tensor, window: int, frames: int) -> Tensor:
    """The least of `[B, T]` in each of the frames of a spectrogram, `[B, frames]`."""
    padded = F.pad(quiet[:, None], (window // 2, window // 2), value=1.0)
    return -F.max_pool1d(-padded, window, window // 4)[:, 0, :frames]


def quietness(audio: Tensor) -> Tensor:
    """Where `[B, T]` is far below the loudest part of an item, as between words: 0 to 1, `[B, T]`."""
    power = F.avg_pool1d(audio.square()[:, None], LEVEL_WINDOW, 1, LEVEL_WINDOW // 2)[:, 0, : audio.shape[-1]]
    level = 10 * power.add(1e-10).log10()
    limit = (level.amax(-1, keepdim=True) - BELOW_SPEECH).clamp(min=ALWAYS_QUIET)
    return torch.sigmoid((limit - level) / 2)


def _log_distance(a: Tensor, b: Tensor, window: int) -> Tensor:
    floor = 1e-5 * window  # about -94 dB of full scale
    return ((a + floor) / (b + floor)).log().abs().mean(-1)
