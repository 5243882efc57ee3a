"""A small convolutional classifier: did this bundle make the sound, or was it recorded?

AudioLM, section IV-F: both kinds are heard through the codec, else the codec's own traces give the made one away, and
with them every recording that somebody has only compressed. So every recording is encoded and decoded before it is
judged, at one level, in windows of two seconds. Audio is `float32 [B, T]` at the bundle's rate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audiolm_cli.config import DetectorConfig, TokenSpec
from audiolm_cli.semantic import log_mel
from audiolm_cli.soundstream import SoundStream

WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.5  # of what is judged at a time
LEVEL = 0.05  # root mean square of what is judged
STRETCH = 5  # windows: a recording is as suspicious as the most suspicious four seconds of it
FAINT, SILENT = 0.01, 1e-8  # windows with this share of the loudest one's energy, or mean square, tell nothing
SUSPICIOUS = 4.0  # sum of a segment's logits: one clear window, or several
FLOOR = 1e-4  # of mel energies


class Judgement(NamedTuple):
    """Probabilities that the windows, which begin at `starts` (s), were generated: NaN where nothing is to be heard.
    `probability` is that of the recording; `segments` are the stretches (s) that speak most for it."""

    probability: float
    segments: list[tuple[float, float]]
    starts: np.ndarray
    windows: np.ndarray


class Detector(nn.Module):
    """Log-mel spectra -> strided convolutions -> one logit for every 320 ms, of which a window has the mean."""

    def __init__(self, config: DetectorConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.bins, self.rate = config.mel_bins, tokens.sample_rate
        self.hop = round(0.02 * self.rate)
        self.size = 1 << self.hop.bit_length()
        layers: list[nn.Module] = []
        for before, after in zip((1, *config.channels), config.channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        bins = -(-self.bins // 2 ** len(config.channels))
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.channels[-1] * bins, 1))

    def mel(self, audio: Tensor) -> Tensor:
        """Audio `[B, T]` -> log-mel spectra `float32 [B, T // hop, bins]`, 50 a second."""
        return log_mel(audio, self.size, self.hop, self.bins, self.rate, FLOOR)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel spectra `[B, frames, bins]` of windows -> logits `[B]`, above 0 where generated is more likely."""
        x = self.layers((mel / 4)[:, None])  # [B, C, steps, bins]
        return self.output(x.permute(0, 2, 1, 3).flatten(2))[..., 0].mean(1)


def heard(codec: SoundStream | None, samples: np.ndarray) -> Tensor:
    """What the detector listens to, `float32 [1, T]`: the samples `[T]` at its level, through the codec if there is
    one."""
    level = float(np.sqrt(np.mean(np.square(samples), dtype=float))) + 1e-9
    audio = torch.from_numpy(samples * np.float32(LEVEL / level))[None]
    if codec is None:
        return audio
    audio = audio.to(codec.quantizer.codebooks.device)
    short = -audio.shape[1] % codec.hop
    return codec.decode(codec.encode(nn.functional.pad(audio, (0, short))))[:, : samples.size]


@torch.inference_mode()
def judge(detector: Detector, codec: SoundStream, samples: np.ndarray) -> Judgement:
    """Judges a recording `float32 [T]` at the detector's rate, as a whole and in windows."""
    length = len(samples)
    samples = np.pad(samples, (0, max(0, detector.hop - length)))
    mel = detector.mel(heard(codec, samples))
    per = detector.rate // detector.hop
    size, hop = round(WINDOW_SECONDS * per), round(HOP_SECONDS * per)
    starts = np.arange(0, max(0, mel.shape[1] - size) + 1, hop)
    begins = starts * detector.hop
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    energy = total[np.minimum(begins + size * detector.hop, len(samples))] - total[begins]
    logits = np.concatenate(
        [
            detector(torch.cat([mel[:, s : s + size] for s in part])).float().cpu().numpy()
            for part in np.array_split(starts, len(starts) // 64 + 1)
        ]
    )
    logits[energy <= max(FAINT * energy.max(), SILENT * size * detector.hop)] = np.nan
    stretch = min(STRETCH, len(logits))
    averages = np.convolve(np.nan_to_num(logits, nan=-5.0), np.ones(stretch) / stretch, "valid")
    seconds = starts / per
    return Judgement(
        float(_probability(averages.max())),
        _segments(np.nan_to_num(logits, nan=0.0), seconds, length / detector.rate),
        seconds,
        _probability(logits),
    )


def _probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _segments(logits: np.ndarray, starts: np.ndarray, end: float) -> list[tuple[float, float]]:
    """The stretches of windows whose sums of logits are highest, as long as they reach SUSPICIOUS. One begins in the
    middle of its first window, or of the recording, and ends in the middle of its last."""
    left, half = logits.copy(), WINDOW_SECONDS / 2
    found: list[tuple[float, float]] = []
    while True:
        total = np.concatenate([[0.0], np.cumsum(left)])
        lowest = np.minimum.accumulate(total)
        last = int((total - lowest).argmax())
        if total[last] - lowest[last] < SUSPICIOUS:
            return sorted(found)
        first = int(total[: last + 1].argmin())
        begin = 0.0 if first == 0 else float(starts[first] + half)
        found.append((begin, end if last == len(starts) else float(starts[last - 1] + half)))
        left[first:last] = -1e9
