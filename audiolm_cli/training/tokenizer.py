"""Trains the semantic tokenizer by masked prediction, from audio alone.

    python -m audiolm_cli.training.tokenizer --data DATA --minutes 45 [--resume] [--preset tiny] [--material piano]

The HuBERT way (Hsu et al., 2021): first clusters of MFCC are predicted behind masks, from then on clusters of what the
last layer puts out, made anew where a round begins (`ROUNDS`). With little audio the first labels matter most: see
`cepstral_points`. With --warm-start there is one round more, on clusters of what the tokenizer at hand puts out.

Inputs are perturbed (vocal tract length, channel, level, noise) while targets come from the clean recording, normalised
over it, so that tokens follow what is said rather than who says it and where. The checkpoint holds both; `finish`
clusters the last layer and returns the tokenizer that ships.

In music what a voice is to speech is the content: of a piano the first clusters are those of its sounding keys, nothing
is normalised over a recording, and no pitch is changed (`MATERIALS`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.autoencoders import hann
from audiolm_cli.bundle import round_to_disk, save_part
from audiolm_cli.config import PRESETS, TokenizerConfig, TokenSpec, preset
from audiolm_cli.semantic import MELS_PER_TOKEN, SemanticTokenizer
from audiolm_cli.soundstream import nearest
from audiolm_cli.training.data import Corpus, load_corpus
from audiolm_cli.training.kmeans import kmeans
from audiolm_cli.training.trainer import Trainer, arguments, load_checkpoint, warm_start

CLUSTERS = 500
CEPSTRA, LIFTER, NEIGHBOURS, DECAY = 13, 0.7, 2, 0.3
CLUSTERED_BATCHES = 50  # of 64 clips of 4 s, whose hidden states the shipped centroids come from: 320 thousand tokens
PITCHES = range(33, 109)  # MIDI numbers of the bands that tell which keys sound: 55 Hz to 4.2 kHz
PITCH_WINDOW = 4096  # samples at 16 kHz, around a token's middle
CHROMA, ATTACK = 2.5, 4.0  # weights of pitch classes, and of level and attack, beside the bands: half as much each
VOICES = 1 / 16  # of the dimensions: 0.511 of the phone's entropy where none, half and twice leave 0.503, 0.508, 0.499
ROUNDS = (0.6,)  # where further rounds begin, as shares of the time
FIGURES = ("masked_loss", "masked_accuracy", "seen_loss", "seen_accuracy")
UNMASKED_WEIGHT = 0.5  # HuBERT's (1 - alpha): inputs are perturbed, so what is not masked has something to learn too
MASK_START, MASK_SPAN = 0.13, 5  # chance that a token starts a mask, tokens masked from there: about half in all


class TokenizerTraining(nn.Module):
    """The Conformer with a mask vector and a prediction head."""

    def __init__(self, config: TokenizerConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.tokenizer = SemanticTokenizer(config, tokens, dropout)
        self.mask = nn.Parameter(0.1 * torch.randn(self.tokenizer.input.in_features))
        self.head = nn.Linear(config.width, CLUSTERS)

    def logits(self, features: Tensor, masked: Tensor) -> Tensor:
        """Features `[B, S, 4 * bins]`, masked `bool [B, S]` -> logits `[B, S, clusters]`."""
        x = torch.where(masked[..., None], self.mask.to(features.dtype), features)
        logits: Tensor = self.head(self.tokenizer.hidden(x))
        return logits


def stretches(corpus: Corpus, hop: int, tokens: int, past: int = 0, batch: int = 1) -> Iterator[Tensor]:
    """The whole tokens of a corpus as consecutive stretches `float32 [batch, (past + tokens) * hop]`, each behind
    `past` tokens of what came before; silence fills up both ends."""
    count = len(corpus.audio) // hop
    for first in range(0, count, tokens * batch):
        start, end = first - past, first + tokens * batch
        audio = corpus.audio[max(0, start) * hop : min(count, end) * hop].astype(np.float32) / 32768
        audio = np.pad(audio, (max(0, -start) * hop, max(0, end - count) * hop))
        yield torch.from_numpy(audio).unfold(0, (past + tokens) * hop, tokens * hop)


@torch.no_grad()
def cepstral_points(tokenizer: SemanticTokenizer, corpus: Corpus, device: torch.device) -> Tensor:
    """What the first labels are clusters of, `[tokens, 5 * CEPSTRA]`: MFCC averaged over a token, each coefficient
    normalised over its recording (which takes away much of voice and microphone), the higher ones weighted down, with
    two neighbours on either side. 512 clusters of these tell 0.565 of the phone's entropy where clusters of MFCC with
    deltas tell 0.517 (`phones`, 7 minutes of validation recordings)."""
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
    """What a piano's first labels are clusters of, `[tokens, keys + 12 + 2]`: bands a semitone wide, their sum over
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
    """Triangular filters a semitone to either side of each of PITCHES, `float32 [frequencies, keys]`."""
    frequency = torch.arange(PITCH_WINDOW // 2 + 1, device=device) * 16000 / PITCH_WINDOW
    place = 69 + 12 * (frequency.clamp(min=1.0) / 440).log2()
    keys = torch.tensor(PITCHES, device=device)
    return (1 - (place[:, None] - keys).abs()).clamp(min=0)


@torch.no_grad()
def hidden_points(
    tokenizer: SemanticTokenizer, corpus: Corpus, device: torch.device, by_recording: bool = True
) -> Tensor:
    """What the last layer puts out on the clean recordings, `[tokens, width]`, each dimension normalised over its
    recording or else over the corpus."""
    tokenizer.eval()
    parts = []
    for audio in stretches(corpus, tokenizer.hop, 200, past=50, batch=16):
        with torch.autocast(device.type, torch.bfloat16):
            hidden = tokenizer.hidden(tokenizer.features(audio.to(device)))
        parts.append(hidden[:, 50:].float().flatten(0, 1))
    tokenizer.train()
    points = torch.cat(parts)[: len(corpus.audio) // tokenizer.hop]
    if by_recording:
        normalise_recordings(points, corpus, tokenizer.hop)
        return points
    return (points - points.mean(0)) / points.std(0)


def normalise_recordings(points: Tensor, corpus: Corpus, hop: int) -> None:
    """Takes each recording's mean off points `[tokens, D]` and divides by its deviation, in place: much of the voice
    and the microphone is in these."""
    for clip in corpus.clips:
        own = points[clip.offset // hop : (clip.offset + clip.samples) // hop]
        own -= own.mean(0)
        own /= own.std(0, correction=0) + 1e-3


@torch.no_grad()
def clustered(points_of: Callable[[Corpus], Tensor], corpora: dict[str, Corpus], name: Path) -> dict[str, np.ndarray]:
    """Labels `int64 [tokens]` of every split: k-means fitted on the training split; kept in `name`_SPLIT.npy."""
    files = {split: name.with_name(f"{name.name}_{split}.npy") for split in corpora}
    if not all(file.is_file() for file in files.values()):
        points = {split: points_of(corpus) for split, corpus in corpora.items()}
        chosen = torch.randperm(len(points["train"]), generator=torch.Generator().manual_seed(0))[:200_000]
        centroids = kmeans(points["train"][chosen.to(points["train"].device)], CLUSTERS, iterations=10)
        for split, file in files.items():
            labels = torch.cat([nearest(part, centroids) for part in points[split].split(65536)])
            np.save(file, labels.short().cpu().numpy())
    return {split: np.load(file).astype(np.int64) for split, file in files.items()}


@torch.no_grad()
def set_statistics(tokenizer: SemanticTokenizer, corpus: Corpus) -> None:
    """Sets the log-mel normalisation from a thousand stretches of 2 s."""
    starts = np.random.default_rng(0).integers(0, len(corpus.audio) - 32000, 1000)
    parts = []
    for group in np.split(starts, 20):
        audio = np.stack([corpus.audio[s : s + 32000] for s in group]).astype(np.float32) / 32768
        parts.append(tokenizer.log_mel(torch.from_numpy(audio).to(tokenizer.mel_mean.device)).flatten(0, 1))
    mel = torch.cat(parts)
    tokenizer.mel_mean.copy_(mel.mean(0))
    tokenizer.mel_scale.copy_(1 / mel.std(0))


def perturb(mel: Tensor, generator: torch.Generator, voice: bool = True) -> Tensor:
    """Log-mel `[B, M, bins]` as another voice, unless that is to stay, microphone, level and room noise would have
    it."""
    batch, _, bins = mel.shape
    uniform = lambda *shape: torch.rand(shape, generator=generator).to(mel.device)  # noqa: E731
    if voice:
        place = torch.arange(bins, device=mel.device) * (0.85 + 0.3 * uniform(batch, 1))  # vocal tract length
        low = place.floor().clamp(0, bins - 1).long()
        high, share = (low + 1).clamp(max=bins - 1), (place - low).clamp(0, 1)
        index = lambda i: i[:, None].expand_as(mel)  # noqa: E731
        mel = torch.lerp(mel.gather(2, index(low)), mel.gather(2, index(high)), share[:, None])
    knots = 3 * torch.randn(batch, 1, 5, generator=generator).to(mel.device) * uniform(batch, 1, 1)  # channel, level
    mel = mel + F.interpolate(knots, bins, mode="linear", align_corners=True)
    floor = (
        mel.mean((1, 2), keepdim=True)
        - 8
        + 7 * uniform(batch, 1, 1)
        + torch.randn(mel.shape, generator=generator).to(mel)
    )
    noisy = uniform(batch, 1, 1) < 0.4
    return torch.where(noisy, torch.logaddexp(mel, floor), mel)


def draw_mask(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Spans of `MASK_SPAN` tokens, `bool [batch, length]`."""
    starts = (torch.rand(batch, 1, length, generator=generator) < MASK_START).float()
    return F.max_pool1d(F.pad(starts, (MASK_SPAN - 1, 0)), MASK_SPAN, 1)[:, 0] > 0


def batch_of(tokenizer: SemanticTokenizer, corpus: Corpus, labels: np.ndarray, first: np.ndarray, length: int) -> tuple:
    """Log-mel `[B, M, bins]` and labels `int64 [B, S]` of the stretches that begin at the given tokens."""
    hop, device = tokenizer.hop, tokenizer.mel_mean.device
    audio = np.stack([corpus.audio[f * hop : (f + length) * hop] for f in first]).astype(np.float32) / 32768
    target = torch.from_numpy(np.stack([labels[f : f + length] for f in first]))
    return tokenizer.log_mel(torch.from_numpy(audio).to(device)), target.to(device)


def normalise(tokenizer: SemanticTokenizer, mel: Tensor) -> Tensor:
    return ((mel - tokenizer.mel_mean) * tokenizer.mel_scale).view(mel.shape[0], -1, tokenizer.input.in_features)


@torch.no_grad()
def finish(
    training: TokenizerTraining, corpus: Corpus, clusters: int, seed: int = 0, voices: float = VOICES
) -> SemanticTokenizer:
    """The tokenizer that ships: the layers in bfloat16's precision, normalisation and centroids.

    Of the directions, the share `voices` are those in which the means of windows of 4 s differ most: they tell voices
    and microphones apart. Centroids are zero there, so they do not choose the token (nuisance attribute projection).
    """
    source = training.tokenizer
    tokenizer = SemanticTokenizer(source.config, TokenSpec(semantic_vocabulary=clusters)).eval()
    wanted = tokenizer.state_dict().keys() - {"centroids", "mean", "scale"}
    tokenizer.load_state_dict({k: v.cpu() for k, v in source.state_dict().items() if k in wanted}, strict=False)
    round_to_disk(tokenizer)
    device = next(source.parameters()).device
    tokenizer.to(device)
    rng, parts, size = np.random.default_rng(seed), [], 4 * 16000
    for _ in range(CLUSTERED_BATCHES):
        starts = rng.integers(0, len(corpus.audio) - size, 64)
        audio = np.stack([corpus.audio[s : s + size] for s in starts]).astype(np.float32) / 32768
        parts.append(tokenizer.represent(torch.from_numpy(audio).to(device)))
    windows = torch.cat(parts)
    points = windows.flatten(0, 1)
    tokenizer.mean.copy_(points.mean(0))
    tokenizer.scale.copy_(1 / points.std(0))
    round_to_disk(tokenizer)
    means = (windows.mean(1) - tokenizer.mean) * tokenizer.scale
    apart = torch.linalg.svd(means, full_matrices=False).Vh[: round(voices * points.shape[1])]
    points = (points - tokenizer.mean) * tokenizer.scale
    points = points - points @ apart.T @ apart
    tokenizer.centroids.copy_(kmeans(points, clusters, iterations=15, seed=seed))
    round_to_disk(tokenizer)
    return tokenizer


def load(runs: Path) -> TokenizerTraining:
    """The training state of the checkpoint in `runs`."""
    training = TokenizerTraining(TokenizerConfig(), TokenSpec())
    training.load_state_dict(load_checkpoint(runs / "tokenizer")["module"])
    return training.eval()


def losses(training: TokenizerTraining, mel: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy and accuracy on masked tokens, then the same on those that are not: four numbers."""
    batch, length = target.shape
    masked = draw_mask(batch, length, generator).to(target.device)
    with torch.autocast(target.device.type, torch.bfloat16):
        logits = training.logits(normalise(training.tokenizer, mel), masked).float()
    figures = []
    for chosen in (masked, ~masked):
        guess, label = logits[chosen], target[chosen]
        figures += [F.cross_entropy(guess, label), (guess.argmax(-1) == label).float().mean()]
    return torch.stack(figures)


@torch.no_grad()
def validate(training: TokenizerTraining, corpus: Corpus, labels: np.ndarray, length: int) -> dict:
    """Masked loss and accuracy on the validation split, beside the share of the most frequent label."""
    training.eval()
    generator, figures = torch.Generator().manual_seed(0), []
    firsts = np.arange(0, len(labels) - length, length)[:200]
    for first in np.split(firsts, range(10, len(firsts), 10)):
        mel, target = batch_of(training.tokenizer, corpus, labels, first, length)
        figures.append(losses(training, mel, target, generator))
    training.train()
    means = [round(value, 4) for value in torch.stack(figures).mean(0).tolist()]
    majority = np.bincount(labels).max() / len(labels)
    return dict(zip(FIGURES, means, strict=True)) | {"majority_class": round(float(majority), 4)}


@dataclass(frozen=True)
class Material:
    """What differs between kinds of sound: the points of the first labels, whether voices are to be told apart as
    little as can be, by normalising points over recordings and by changing them in inputs, and the share of the
    directions that centroids leave out."""

    points: Callable[[SemanticTokenizer, Corpus, torch.device], Tensor]
    voices: bool
    left_out: float


MATERIALS = {"speech": Material(cepstral_points, True, VOICES), "piano": Material(pitch_points, False, 0.0)}


def main() -> None:
    parser = arguments(__doc__, minutes=45)
    parser.add_argument("--material", choices=MATERIALS, default="speech", help="what the recordings are of")
    parser.add_argument("--preset", choices=PRESETS, default="speech", help="sizes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a crop")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--clusters", type=int, help="semantic tokens in the end; the preset's number by default")
    args = parser.parse_args()
    chosen, material = preset(args.preset), MATERIALS[args.material]
    spec = dataclasses.replace(chosen.tokens, semantic_vocabulary=args.clusters or chosen.tokens.semantic_vocabulary)
    corpora = {s: load_corpus(args.data, s, spec.sample_rate, args.runs / "audio") for s in ("train", "valid")}
    training = TokenizerTraining(chosen.tokenizer, chosen.tokens)
    before = warm_start(args, "tokenizer", training.tokenizer)
    trainer = Trainer("tokenizer", args, training, rate=args.rate, betas=(0.9, 0.98), weight_decay=0.01, warmup=400)
    before = trainer.extra.setdefault("before", before)  # of the first run, when this one goes on
    tokenizer, device, length = training.tokenizer, trainer.device, int(args.seconds * spec.semantic_rate)
    if trainer.step == 0:
        if not args.warm_start:
            set_statistics(tokenizer, corpora["train"])
        with trainer.first_alone():
            for old in trainer.folder.glob("labels*"):
                old.unlink(missing_ok=True)

    def round_now() -> int:
        return 2 if args.warm_start else 1 + sum(trainer.progress > start for start in ROUNDS)

    def labels_of(number: int) -> dict[str, np.ndarray]:
        points = material.points if number == 1 else partial(hidden_points, by_recording=material.voices)
        name = trainer.folder / f"labels{number}"
        with trainer.first_alone():
            return clustered(lambda corpus: points(tokenizer, corpus, device), corpora, name)

    rng = np.random.default_rng((args.seed, trainer.step, trainer.rank))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    number = round_now()
    labels = labels_of(number)
    for _ in trainer:
        if number < round_now():
            number = round_now()
            labels = labels_of(number)
            training.head.reset_parameters()
            trainer.broadcast()
        first = rng.integers(0, len(labels["train"]) - length, args.batch)
        mel, target = batch_of(tokenizer, corpora["train"], labels["train"], first, length)
        figures = losses(training, perturb(mel, generator, material.voices), target, generator)
        trainer.update(figures[0] + UNMASKED_WEIGHT * figures[2], dict(zip(FIGURES, figures, strict=True)))
        if trainer.due():
            trainer.log(valid=True, round=number, **validate(training, corpora["valid"], labels["valid"], length))
    trainer.log(
        valid=True, finished=True, round=number, **validate(training, corpora["valid"], labels["valid"], length)
    )
    if trainer.rank:
        return
    shipped = finish(training.eval(), corpora["train"], spec.semantic_vocabulary, voices=material.left_out)
    about = {
        "config": dataclasses.asdict(shipped.config),
        "tokens": dataclasses.asdict(spec),
        "trained": {"steps": trainer.step, "minutes": round(trainer.seconds / 60, 1), **before},
    }
    save_part(args.runs / "parts" / "tokenizer.safetensors", shipped, about)


if __name__ == "__main__":
    main()
