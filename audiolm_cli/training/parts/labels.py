"""Labels for training the tokenizer without a teacher: k-means clusters of audio features in the first round, the
tokenizer's own tokens in later ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli.audio.mel import hann
from audiolm_cli.config import Domain, TokenizerConfig
from audiolm_cli.tokenizer.semantic import MELS_PER_TOKEN, SemanticTokenizer
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.parts.kmeans import kmeans, members
from audiolm_cli.training.trainer import autocast

CLUSTERS = 500
CEPSTRA, LIFTER, NEIGHBOURS, DECAY = 13, 0.7, 2, 0.3
PITCHES = range(33, 109)  # MIDI numbers of the semitone bands: 55 Hz to 4.2 kHz
PITCH_WINDOW = 4096  # samples at 16 kHz, centred on a token
CHROMA, ATTACK = 2.5, 4.0  # weights of pitch classes, and of level and attack, relative to the bands


def stretches(corpus: Corpus, hop: int, tokens: int, past: int = 0, batch: int = 1) -> Iterator[Tensor]:
    """A corpus's whole tokens as consecutive stretches `float32 [batch, (past + tokens) * hop]`, each with `past`
    tokens of past context; silence pads both ends."""
    count = len(corpus.audio) // hop
    for first in range(0, count, tokens * batch):
        start, end = first - past, first + tokens * batch
        audio = corpus.audio[max(0, start) * hop : min(count, end) * hop].astype(np.float32) / 32768
        audio = np.pad(audio, (max(0, -start) * hop, max(0, end - count) * hop))
        yield torch.from_numpy(audio).unfold(0, (past + tokens) * hop, tokens * hop)


@torch.no_grad()
def cepstral_points(tokenizer: SemanticTokenizer, corpus: Corpus, device: torch.device) -> Tensor:
    """The points whose clusters are the first labels, `[tokens, 5 * CEPSTRA]`: MFCC averaged over a token, each
    coefficient normalised over its recording (which removes much of voice and microphone), higher ones weighted down,
    with two neighbours on either side. 512 clusters of these hold 0.565 of the phone's entropy, clusters of MFCC with
    deltas 0.517 (`phones`, 7 minutes of validation recordings)."""
    bins = tokenizer.config.mel_bins
    angle = (torch.arange(bins, device=device) + 0.5) * math.pi / bins
    basis = torch.cos(torch.arange(CEPSTRA, device=device)[:, None] * angle).T
    parts = []
    for audio in stretches(corpus, tokenizer.hop, 15000):
        mel = tokenizer.log_mel(audio.to(device))[0]
        parts.append(mel.view(-1, MELS_PER_TOKEN, bins).mean(1) @ basis)
    points = torch.cat(parts)[: len(corpus.audio) // tokenizer.hop]
    normalise_recordings(points, corpus, tokenizer.hop)
    points *= 1 - LIFTER * torch.arange(CEPSTRA, device=device) / CEPSTRA
    wide = F.pad(points.T, (NEIGHBOURS, NEIGHBOURS), mode="replicate").unfold(1, 2 * NEIGHBOURS + 1, 1)
    weights = 1 - DECAY * torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=device).abs()
    return (wide * weights).permute(1, 2, 0).flatten(1)


@torch.no_grad()
def pitch_points(tokenizer: SemanticTokenizer, corpus: Corpus, device: torch.device) -> Tensor:
    """The points whose clusters are a piano's first labels, `[tokens, keys + 12 + 2]`: semitone bands, their sum over
    octaves, the level and how much of it is new, each normalised over the corpus and weighted."""
    filters = pitch_bands(device)
    parts = []
    for audio in stretches(corpus, tokenizer.hop, 15000):
        padded = F.pad(audio.to(device), ((PITCH_WINDOW - tokenizer.hop) // 2,) * 2)
        frames = padded[0].unfold(0, PITCH_WINDOW, tokenizer.hop)
        power = torch.view_as_real(torch.fft.rfft(frames * hann(PITCH_WINDOW, device))).square().sum(-1)
        parts.append((power @ filters + 1e-3).log())
    bands = torch.cat(parts)[: len(corpus.audio) // tokenizer.hop]
    level = bands.logsumexp(1, keepdim=True)
    attack = F.pad(bands.diff(dim=0).clamp(min=0).mean(1, keepdim=True), (0, 0, 1, 0))
    octaves = torch.tensor([[float(pitch % 12 == c) for c in range(12)] for pitch in PITCHES], device=device)
    chroma = (bands - bands.mean(1, keepdim=True)).clamp(min=0) @ octaves
    groups = ((bands, 1.0), (chroma, CHROMA), (torch.cat([level, attack], 1), ATTACK))
    return torch.cat([weight * (group - group.mean(0)) / group.std(0) for group, weight in groups], 1)


def pitch_bands(device: torch.device) -> Tensor:
    """Triangular filters reaching a semitone to either side of each of PITCHES, `float32 [frequencies, keys]`."""
    frequency = torch.arange(PITCH_WINDOW // 2 + 1, device=device) * RATE / PITCH_WINDOW
    place = 69 + 12 * (frequency.clamp(min=1.0) / 440).log2()
    keys = torch.tensor(PITCHES, device=device)
    return (1 - (place[:, None] - keys).abs()).clamp(min=0)


@torch.no_grad()
def own_labels(tokenizer: SemanticTokenizer, corpus: Corpus) -> Tensor:
    """The tokenizer's own tokens of the clean recordings, `int64 [tokens]`."""
    device, parts = tokenizer.centroids.device, []
    for audio in stretches(corpus, tokenizer.hop, 200, past=50, batch=16):
        with autocast(device):
            hidden = tokenizer.hidden(tokenizer.features(audio.to(device)))
        parts.append(tokenizer.quantize(hidden[:, 50:].float()).flatten())
    return torch.cat(parts)[: len(corpus.audio) // tokenizer.hop]


def normalise_recordings(points: Tensor, corpus: Corpus, hop: int) -> None:
    """Subtracts each recording's mean from points `[tokens, D]` and divides by its deviation, in place, which removes
    much of voice and microphone."""
    for clip in corpus.clips:
        own = points[clip.offset // hop : (clip.offset + clip.samples) // hop]
        own -= own.mean(0)
        own /= own.std(0, correction=0) + 1e-3


@torch.no_grad()
def clustered(points_of: Callable[[Corpus], Tensor], corpora: dict[str, Corpus]) -> dict[str, Tensor]:
    """Labels `int64 [tokens]` of every split: k-means fitted on the training split."""
    points = {split: points_of(corpus) for split, corpus in corpora.items()}
    chosen = torch.randperm(len(points["train"]), generator=torch.Generator().manual_seed(0))[:200_000]
    centroids = kmeans(points["train"][chosen.to(points["train"].device)], CLUSTERS, iterations=10)
    return {split: members(part, centroids) for split, part in points.items()}


@dataclass(frozen=True)
class Features:
    """What differs between domains: the points of the first labels, whether inputs get altered voices, so that tokens
    depend on them little, and the number of directions on which outputs are compared (0: all)."""

    points: Callable[[SemanticTokenizer, Corpus, torch.device], Tensor]
    voices: bool
    directions: int

    def config(self, chosen: TokenizerConfig) -> TokenizerConfig:
        """The config with these sizes for a tokenizer without a teacher."""
        return dataclasses.replace(chosen, units="centroids", directions=min(self.directions, chosen.width))


FEATURES: dict[Domain, Features] = {
    "speech": Features(cepstral_points, True, 192),
    "piano": Features(pitch_points, False, 0),
}
