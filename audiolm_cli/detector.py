"""A small convolutional classifier: did this bundle generate a sound, or was it recorded?

AudioLM, section IV-F: recordings and outputs both pass through the codec first. Otherwise codec artefacts would decide,
and every recording that was merely compressed would count as generated. There are two kinds. A `LikelihoodDetector`
uses the likelihood of each token under the bundle's own stages: sampled tokens are likelier than recorded ones, in any
room and with any microphone. A `SpectralDetector` uses spectra. On speech it overfits to the training corpora and calls
half of an unknown corpus generated; on the piano bundle it is the better one.
Audio is `float32 [T]` at the bundle's rate.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from audiolm_cli.audio import postfilter
from audiolm_cli.audio.mel import log_mel
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import BundleConfig, DetectorConfig, TokenSpec
from audiolm_cli.console import Progress, counted
from audiolm_cli.language_models.likelihood import FEATURES, likelihood_features

if TYPE_CHECKING:
    from audiolm_cli.bundles.bundle import Bundle

WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.5
PIECE_SECONDS = 6.0  # processed by the stages at a time
BINS, FLOOR = 64, 1e-4  # of mel energies
LEVEL = 0.05  # root mean square of a SpectralDetector's input
STRETCH = 5  # windows: a recording's score is the highest mean logit over any four seconds
QUIET_SHARE, SILENT = 0.01, 1e-8  # windows below this share of the loudest one's energy, or mean square, are ignored
MIN_SECONDS = 1.0  # of audible sound, below which there is no judgement
SEGMENT_LOGITS = 4.0  # lowest sum of a segment's logits: one clear window, or several
HALF_GENERATED = -2.0  # logit of half-generated windows; below 0, since training weights false alarms more


class Judgement(NamedTuple):
    """The detector's result for a recording.

    probability: that all or part of it was generated; None with less than MIN_SECONDS of audible sound.
    segments: the stretches (s) that were most likely generated.
    starts, windows: start (s) and probability of each window; NaN where it is silent.
    """

    probability: float | None
    segments: list[tuple[float, float]]
    starts: np.ndarray
    windows: np.ndarray


class LikelihoodDetector(nn.Module):
    """Likelihood features of frames -> strided convolutions -> a logit every few frames, averaged over a window."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: DetectorConfig, sampled_quantizers: int, dropout: float = 0.0):
        super().__init__()
        inputs = FEATURES * (1 + sampled_quantizers)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((inputs, *config.channels)):
            layers += [nn.Conv1d(before, after, 5, 2, 2), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.channels[-1], 1))

    def features(self, bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Tensor:
        """A recording `[T]` -> `likelihood_features`, `float32 [F, K]`, one row per codec frame."""
        spec = bundle.config.tokens
        size = round(
            min(PIECE_SECONDS, *(model.config.window_seconds for model in bundle.stages.values())) * spec.semantic_rate
        )
        tell = counted(progress, "tokenize", -(-len(samples) // spec.samples_per_semantic))
        return likelihood_features(bundle.stages, *bundle.tokenize(samples, tell), size, progress)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, F, K]` of windows -> logits `[B]`, above 0 if generated is more likely."""
        normal = (features - self.mean) * self.scale
        return self.output(self.layers(normal.transpose(1, 2)).transpose(1, 2)).mean((1, 2))


class SpectralDetector(nn.Module):
    """Log-mel spectra -> strided convolutions -> a logit every few frames, averaged over a window."""

    def __init__(self, config: DetectorConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.rate, self.hop = tokens.sample_rate, tokens.samples_per_frame
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((1, *config.channels)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        bins = -(-BINS // 2 ** len(config.channels))
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.channels[-1] * bins, 1))

    def features(self, bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Tensor:
        """A recording `[T]` -> log-mel spectra of its reconstruction by the codec, `float32 [F, BINS]`."""
        return self.spectra(samples, bundle.codec, progress)

    def spectra(
        self, samples: np.ndarray, codec: SoundStream | None = None, progress: Progress | None = None
    ) -> Tensor:
        """The log-mel spectra at a fixed level; without a codec, of the recording itself."""
        level = float(np.sqrt(np.mean(np.square(samples), dtype=float))) + 1e-9
        audio = torch.from_numpy(np.pad(samples * np.float32(LEVEL / level), (0, -len(samples) % self.hop)))[None]
        if codec is not None:
            tell = counted(progress, "judge", 2 * audio.shape[-1] // self.hop)
            audio = codec.decode(codec.encode(audio.to(codec.quantizer.codebooks.device), tell), tell)
        return log_mel(audio, 1 << self.hop.bit_length(), self.hop, BINS, self.rate, FLOOR)[0].cpu()

    def forward(self, features: Tensor) -> Tensor:
        """Log-mel spectra `[B, F, BINS]` of windows -> logits `[B]`."""
        x = self.layers((features / 4)[:, None])  # [B, C, steps, bins]
        return self.output(x.permute(0, 2, 1, 3).flatten(2)).mean((1, 2))


Detector = LikelihoodDetector | SpectralDetector


def make_detector(config: BundleConfig, dropout: float = 0.0) -> Detector:
    """The detector of a bundle, which must have one, with random weights."""
    assert config.detector is not None
    if config.detector.hears == "traces":
        return LikelihoodDetector(config.detector, config.sampled_quantizers, dropout)
    return SpectralDetector(config.detector, config.tokens, dropout)


@torch.inference_mode()
def judge(bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Judgement:
    """Runs the bundle's detector on a recording `float32 [T]`."""
    tokens, detector = bundle.config.tokens, bundle.detector
    assert detector is not None
    length, audible = len(samples), postfilter.audible(samples, tokens.sample_rate)
    if audible.sum() < MIN_SECONDS * postfilter.FRAMES:
        return Judgement(None, [], np.zeros(0), np.zeros(0))
    found = detector.features(bundle, samples, progress).to(bundle.device)
    per = tokens.sample_rate / tokens.samples_per_frame
    size, hop = round(WINDOW_SECONDS * per), round(HOP_SECONDS * per)
    starts = np.arange(0, max(0, length // tokens.samples_per_frame - size) + 1, hop)
    begins, ends = (np.minimum(at * tokens.samples_per_frame, length) for at in (starts, starts + size))
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    energy = total[ends] - total[begins]
    logits = np.concatenate(
        [
            detector(torch.stack([found[s : s + size] for s in part])).float().cpu().numpy()
            for part in np.array_split(starts, len(starts) // 64 + 1)
        ]
    )
    logits[energy <= max(QUIET_SHARE * energy.max(), SILENT * size * tokens.samples_per_frame)] = np.nan
    stretch = min(STRETCH, len(logits))
    averages = np.convolve(np.nan_to_num(logits, nan=-5.0), np.ones(stretch) / stretch, "valid")
    seconds = starts / per
    return Judgement(
        float(_probability(averages.max())),
        _segments(logits, seconds, length / tokens.sample_rate),
        seconds,
        _probability(logits),
    )


def _probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _segments(logits: np.ndarray, starts: np.ndarray, end: float) -> list[tuple[float, float]]:
    """Runs of windows with the highest sums of logits, down to SEGMENT_LOGITS, extended by half-generated windows
    on either side. A run begins in the middle of its first window and ends in the middle of its last, or at the
    recording's start or end."""
    left, half = np.nan_to_num(logits, nan=0.0), WINDOW_SECONDS / 2
    found: list[tuple[float, float]] = []
    while True:
        total = np.concatenate([[0.0], np.cumsum(left)])
        lowest = np.minimum.accumulate(total)
        last = int((total - lowest).argmax())
        if total[last] - lowest[last] < SEGMENT_LOGITS:
            return sorted(found)
        first = last - int(total[last::-1].argmin())
        likely = (left > HALF_GENERATED) & ~np.isnan(logits)
        while first > 0 and likely[first - 1]:
            first -= 1
        while last < len(left) and likely[last]:
            last += 1
        begin = 0.0 if first == 0 else float(starts[first] + half)
        found.append((begin, end if last == len(starts) else float(starts[last - 1] + half)))
        left[first:last] = -1e9
