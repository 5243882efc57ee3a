"""Mel spectrograms: triangular filters over a power spectrum, evenly spaced in mel."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
@torch.inference_mode(False)  # cached: a tensor made in inference mode could not be used in training
def hann(size: int, device: torch.device) -> Tensor:
    """The Hann window `float32 [size]`."""
    return torch.hann_window(size, device=device)


def triangles(frequencies: int, points: Tensor, rate: int) -> Tensor:
    """Filters `float32 [frequencies, bins]` over frequencies from 0 Hz to half the rate: each rises from one of the
    points `[bins + 2]`, in Hz, to the next, and falls to the one after."""
    hertz = torch.linspace(0, rate // 2, frequencies)
    widths = points.diff()
    slopes = points - hertz[:, None]
    return torch.min(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]).clamp(min=0)


def mel_filters(frequencies: int, bins: int, rate: int) -> Tensor:
    """Filters `float32 [frequencies, bins]` from 0 Hz to half the rate, evenly spaced in mel (O'Shaughnessy, 1987)."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    return triangles(frequencies, 700 * (10 ** (torch.linspace(0, highest, bins + 2) / 2595) - 1), rate)


@functools.cache
@torch.inference_mode(False)  # as above
def _filters(frequencies: int, bins: int, rate: int, device: torch.device) -> Tensor:
    return mel_filters(frequencies, bins, rate).to(device)


def log_mel(audio: Tensor, window: int, hop: int, bins: int, rate: int, floor: float) -> Tensor:
    """Audio `[B, T]` -> log mel energies, `floor` added, `float32 [B, T // hop, bins]`. A frame's window of `window`
    samples ends where the frame ends."""
    frames = F.pad(audio, (window - hop, 0)).unfold(-1, window, hop) * hann(window, audio.device)
    size = 1 << (window - 1).bit_length()
    power = torch.view_as_real(torch.fft.rfft(frames, size)).square().sum(-1)
    return (power @ _filters(size // 2 + 1, bins, rate, audio.device)).add(floor).log()
