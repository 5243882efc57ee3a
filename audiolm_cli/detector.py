"""A small convolutional classifier: did this bundle make the sound, or was it recorded?

AudioLM, section IV-F: both kinds are heard through the codec, else the codec's own traces give the made one away, and
with them every recording that somebody has only compressed. There are two ways to listen. A `TraceDetector` hears
nothing but the tokens, and of these only how likely the bundle's own stages find each: what was sampled at low
temperatures is likelier than what was recorded, whichever room or microphone that is from. A `SpectralDetector` hears
spectra; of speech it learns the corpora by heart, and calls half of the recordings of an unknown one generated. Where a
bundle samples as freely as that of the piano, it hears more. Audio is `float32 [T]` at the bundle's rate.
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
from audiolm_cli.config import DetectorConfig, TokenSpec
from audiolm_cli.console import Progress, counted
from audiolm_cli.language_models.likelihood import EVIDENCE, traces

if TYPE_CHECKING:
    from audiolm_cli.bundles.bundle import Bundle

WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.5  # of what is judged at a time
PIECE_SECONDS = 6.0  # that the stages read at a time
BINS, FLOOR = 64, 1e-4  # of mel energies
LEVEL = 0.05  # root mean square of what a SpectralDetector hears
STRETCH = 5  # windows: a recording is as suspicious as the most suspicious four seconds of it
FAINT, SILENT = 0.01, 1e-8  # windows with this share of the loudest one's energy, or mean square, tell nothing
LEAST_SECONDS = 1.0  # in which there is something to be heard: less tells nothing
SUSPICIOUS = 4.0  # sum of a segment's logits: one clear window, or several
DOUBT = 2.0  # a false alarm costs so much in training: windows of which half was generated have this logit, negative


class Judgement(NamedTuple):
    """Probabilities that the windows, which begin at `starts` (s), were generated: NaN where nothing is to be heard.
    `probability` is that of the recording, None where that is too short to tell, or too little of it to be heard;
    `segments` are the stretches (s) that speak most for it."""

    probability: float | None
    segments: list[tuple[float, float]]
    starts: np.ndarray
    windows: np.ndarray


class TraceDetector(nn.Module):
    """Traces of frames -> strided convolutions -> one logit for every few frames, of which a window has the mean."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: DetectorConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        inputs = EVIDENCE * (1 + tokens.quantizers)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((inputs, *config.channels)):
            layers += [nn.Conv1d(before, after, 5, 2, 2), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.channels[-1], 1))

    def hear(self, bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Tensor:
        """A recording `[T]` -> `likelihood.traces`, `float32 [F, K]` for each frame of the codec."""
        spec = bundle.config.tokens
        size = round(
            min(PIECE_SECONDS, *(model.config.window_seconds for model in bundle.stages.values())) * spec.semantic_rate
        )
        tell = counted(progress, "tokenize", -(-len(samples) // spec.samples_per_semantic))
        return traces(bundle.stages, *bundle.tokenize(samples, tell), size, progress)

    def forward(self, heard: Tensor) -> Tensor:
        """Traces `[B, F, K]` of windows -> logits `[B]`, above 0 where generated is more likely."""
        normal = (heard - self.mean) * self.scale
        return self.output(self.layers(normal.transpose(1, 2)).transpose(1, 2)).mean((1, 2))


class SpectralDetector(nn.Module):
    """Log-mel spectra -> strided convolutions -> one logit for every few frames, of which a window has the mean."""

    def __init__(self, config: DetectorConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.rate, self.hop = tokens.sample_rate, tokens.samples_per_frame
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((1, *config.channels)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        bins = -(-BINS // 2 ** len(config.channels))
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.channels[-1] * bins, 1))

    def hear(self, bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Tensor:
        """A recording `[T]` -> log-mel spectra of what the codec makes of it, `float32 [F, BINS]`."""
        return self.spectra(samples, bundle.codec, progress)

    def spectra(
        self, samples: np.ndarray, codec: SoundStream | None = None, progress: Progress | None = None
    ) -> Tensor:
        """The same, or without a codec of the recording itself; always at one level."""
        level = float(np.sqrt(np.mean(np.square(samples), dtype=float))) + 1e-9
        audio = torch.from_numpy(np.pad(samples * np.float32(LEVEL / level), (0, -len(samples) % self.hop)))[None]
        if codec is not None:
            tell = counted(progress, "judge", 2 * audio.shape[-1] // self.hop)
            audio = codec.decode(codec.encode(audio.to(codec.quantizer.codebooks.device), tell), tell)
        return log_mel(audio, 1 << self.hop.bit_length(), self.hop, BINS, self.rate, FLOOR)[0].cpu()

    def forward(self, heard: Tensor) -> Tensor:
        """Log-mel spectra `[B, F, BINS]` of windows -> logits `[B]`."""
        x = self.layers((heard / 4)[:, None])  # [B, C, steps, bins]
        return self.output(x.permute(0, 2, 1, 3).flatten(2)).mean((1, 2))


Detector = TraceDetector | SpectralDetector


def make_detector(config: DetectorConfig, tokens: TokenSpec, dropout: float = 0.0) -> Detector:
    """The detector that the config wants, with random weights."""
    return (TraceDetector if config.hears == "traces" else SpectralDetector)(config, tokens, dropout)


@torch.inference_mode()
def judge(bundle: Bundle, samples: np.ndarray, progress: Progress | None = None) -> Judgement:
    """Judges a recording `float32 [T]` by the bundle's detector, as a whole and in windows."""
    tokens, detector = bundle.config.tokens, bundle.detector
    assert detector is not None
    length, audible = len(samples), postfilter.audible(samples, tokens.sample_rate)
    if audible.sum() < LEAST_SECONDS * postfilter.FRAMES:
        return Judgement(None, [], np.zeros(0), np.zeros(0))
    found = detector.hear(bundle, samples, progress).to(bundle.device)
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
    logits[energy <= max(FAINT * energy.max(), SILENT * size * tokens.samples_per_frame)] = np.nan
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
    """The stretches of windows whose sums of logits are highest, as long as they reach SUSPICIOUS, with what is about
    half generated on either side. One begins in the middle of its first window, or of the recording, and ends in the
    middle of its last."""
    left, half = np.nan_to_num(logits, nan=0.0), WINDOW_SECONDS / 2
    found: list[tuple[float, float]] = []
    while True:
        total = np.concatenate([[0.0], np.cumsum(left)])
        lowest = np.minimum.accumulate(total)
        last = int((total - lowest).argmax())
        if total[last] - lowest[last] < SUSPICIOUS:
            return sorted(found)
        first = last - int(total[last::-1].argmin())
        half_made = (left > -DOUBT) & ~np.isnan(logits)
        while first > 0 and half_made[first - 1]:
            first -= 1
        while last < len(left) and half_made[last]:
            last += 1
        begin = 0.0 if first == 0 else float(starts[first] + half)
        found.append((begin, end if last == len(starts) else float(starts[last - 1] + half)))
        left[first:last] = -1e9
