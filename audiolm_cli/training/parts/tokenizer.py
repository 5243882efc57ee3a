"""Trains the semantic tokenizer by masked prediction, from audio alone.

    python -m audiolm_cli.training.parts.tokenizer --data DATA --minutes 45 [--resume] [--recipe piano]

Follows HuBERT (Hsu et al., 2021): masked tokens are predicted as clusters of MFCC in the first round, and as clusters
of the last layer's outputs in further rounds (`ROUNDS`), which recompute them. With little audio the first labels
matter most: see `labels.cepstral_points`. --warm-start adds one round to a trained tokenizer, on clusters of its own
outputs; tokens keep their numbers (`keep_numbers`).

Inputs are perturbed (vocal tract length, channel, level, noise) while targets come from the clean recording, so that
tokens depend on what is said and not on speaker and room. For the same reason `finish`, which returns the tokenizer
that ships, clusters the last layer in directions that speakers and rooms change little (`content_directions`).

In music, what identifies a speaker (pitch, timbre) is content. So for piano the first clusters are of its sounding
keys, nothing is normalised over a recording, no direction is left out, and pitch is not perturbed (`labels.FEATURES`).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.bundles.bundle import read_about, round_to_disk, save_part
from audiolm_cli.config import TokenizerConfig, TokenSpec
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus, load_corpus
from audiolm_cli.training.corpora.tokenize import altered, load_part
from audiolm_cli.training.parts.kmeans import best_of
from audiolm_cli.training.parts.labels import CLUSTERS, FEATURES, clustered, own_labels
from audiolm_cli.training.recipes import RECIPES
from audiolm_cli.training.trainer import (
    Trainer,
    add_matrices,
    arguments,
    autocast,
    matrices,
    warm_start,
)

CLUSTERED_TOKENS = 320_000  # whose hidden states, of whole recordings, the shipped centroids are fitted on
SEEDINGS = 4  # of which the best is kept
CHANGED_TOKENS = 60_000  # of these, also processed with an altered voice
VOICES, PIECE, FLOOR = 16, 100, 0.1  # directions removed, tokens per mean, share of the variance added to each
ROUNDS = (0.6,)  # starts of further rounds, as shares of the time
FIGURES = ("masked_loss", "masked_accuracy", "seen_loss", "seen_accuracy")
UNMASKED_WEIGHT = 0.5  # HuBERT's (1 - alpha): inputs are perturbed, so unmasked tokens teach something, too
MASK_START, MASK_SPAN = 0.13, 5  # chance that a token starts a mask, and its length in tokens: about half are masked


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


@torch.no_grad()
def set_statistics(tokenizer: SemanticTokenizer, corpus: Corpus) -> None:
    """Sets the log-mel normalisation from a thousand stretches of 2 s."""
    starts = np.random.default_rng(0).integers(0, len(corpus.audio) - 2 * RATE, 1000)
    parts = []
    for group in np.split(starts, 20):
        audio = np.stack([corpus.audio[s : s + 2 * RATE] for s in group]).astype(np.float32) / 32768
        parts.append(tokenizer.log_mel(torch.from_numpy(audio).to(tokenizer.mel_mean.device)).flatten(0, 1))
    mel = torch.cat(parts)
    tokenizer.mel_mean.copy_(mel.mean(0))
    tokenizer.mel_scale.copy_(1 / mel.std(0))


def perturb(mel: Tensor, generator: torch.Generator, voice: bool = True) -> Tensor:
    """Perturbs log-mel `[B, M, bins]`: microphone, level, room noise and, if `voice`, the vocal tract."""
    batch, _, bins = mel.shape
    uniform = lambda *shape: torch.rand(shape, generator=generator).to(mel.device)  # noqa: E731
    mel = warped(mel, generator) if voice else mel
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


def warped(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mel `[B, M, bins]` with random vocal tract lengths."""
    batch, _, bins = mel.shape
    place = torch.arange(bins, device=mel.device) * (0.85 + 0.3 * torch.rand(batch, 1, generator=generator)).to(mel)
    low = place.floor().clamp(0, bins - 1).long()
    high, share = (low + 1).clamp(max=bins - 1), (place - low).clamp(0, 1)
    index = lambda i: i[:, None].expand_as(mel)  # noqa: E731
    return torch.lerp(mel.gather(2, index(low)), mel.gather(2, index(high)), share[:, None])


def draw_mask(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """A mask of spans of `MASK_SPAN` tokens, `bool [batch, length]`."""
    starts = (torch.rand(batch, 1, length, generator=generator) < MASK_START).float()
    return F.max_pool1d(F.pad(starts, (MASK_SPAN - 1, 0)), MASK_SPAN, 1)[:, 0] > 0


def batch_of(tokenizer: SemanticTokenizer, corpus: Corpus, labels: np.ndarray, first: np.ndarray, length: int) -> tuple:
    """Log-mel `[B, M, bins]` and labels `int64 [B, S]` of the stretches that start at the given tokens."""
    hop, device = tokenizer.hop, tokenizer.mel_mean.device
    audio = np.stack([corpus.audio[f * hop : (f + length) * hop] for f in first]).astype(np.float32) / 32768
    target = torch.from_numpy(np.stack([labels[f : f + length] for f in first]))
    return tokenizer.log_mel(torch.from_numpy(audio).to(device)), target.to(device)


def normalise(tokenizer: SemanticTokenizer, mel: Tensor) -> Tensor:
    return ((mel - tokenizer.mel_mean) * tokenizer.mel_scale).view(mel.shape[0], -1, tokenizer.input.in_features)


@torch.no_grad()
def finish(
    training: TokenizerTraining, corpus: Corpus, clusters: int, in_int8: tuple[str, ...] = ()
) -> SemanticTokenizer:
    """The tokenizer to ship: the layers at their precision on disk, with matrices of these name prefixes in int8; then
    normalisation, directions and centroids from the outputs of these layers."""
    source = training.tokenizer
    tokenizer = SemanticTokenizer(source.config, TokenSpec(semantic_vocabulary=clusters)).eval()
    wanted = tokenizer.state_dict().keys() - {"centroids", "directions", "mean", "scale"}
    tokenizer.load_state_dict({k: v.cpu() for k, v in source.state_dict().items() if k in wanted}, strict=False)
    round_to_disk(tokenizer, in_int8)
    tokenizer.to(next(source.parameters()).device)
    clips = [clip for clip in corpus.clips if clip.samples >= tokenizer.hop]
    rng, recordings, tokens = np.random.default_rng(0), [], 0
    for number in rng.permutation(len(clips)):
        samples = corpus.samples(clips[number])
        recordings.append((samples, hidden_states(tokenizer, samples)))
        tokens += len(recordings[-1][1])
        if tokens >= CLUSTERED_TOKENS:
            break
    hidden = torch.cat([own for _, own in recordings])
    tokenizer.mean.copy_(hidden.mean(0))
    tokenizer.scale.copy_(1 / hidden.std(0))
    if source.config.directions:
        tokenizer.directions.copy_(content_directions(tokenizer, recordings, rng))
    round_to_disk(tokenizer, in_int8)
    tokenizer.centroids.copy_(best_of(SEEDINGS, tokenizer.points(hidden), clusters, iterations=30))
    round_to_disk(tokenizer, in_int8)
    return tokenizer


def hidden_states(tokenizer: SemanticTokenizer, samples: np.ndarray) -> Tensor:
    """Hidden states `[S, width]` of samples `[T]`."""
    return tokenizer.represent(torch.from_numpy(samples).to(tokenizer.mean.device)[None])[0]


def content_directions(
    tokenizer: SemanticTokenizer, recordings: list[tuple[np.ndarray, Tensor]], rng: np.random.Generator
) -> Tensor:
    """The directions `[directions, width]` on which normalised hidden states are compared, from recordings `[T]` and
    their hidden states: those of most variance after reducing what depends on voices and microphones.

    That is the change of hidden states when a recording's rate, level and channel change, made equally large in every
    direction (within-class covariance normalisation, Hatch et al., 2006), and the VOICES directions in which the means
    of recordings then differ most (nuisance attribute projection, Solomonoff et al., 2005).
    """
    normal = [tokenizer.normal(own) for _, own in recordings]
    differences, tokens = [], 0
    for (samples, _), own in zip(recordings, normal, strict=True):
        other = altered(samples, rng)
        if len(other) < tokenizer.hop:
            continue
        changed = tokenizer.normal(hidden_states(tokenizer, other))
        place = (torch.arange(len(own), device=own.device) + 0.5) * len(other) / len(samples)
        differences.append(own - changed[place.long().clamp(max=len(changed) - 1)])
        tokens += len(own)
        if tokens >= CHANGED_TOKENS:
            break
    covariance = torch.cat(differences).T.cov(correction=0)
    floor = FLOOR * covariance.diagonal().mean() * torch.eye(len(covariance), device=covariance.device)
    values, vectors = torch.linalg.eigh(covariance + floor)
    white = vectors * values.rsqrt()
    pieces = [part for own in normal for part in own.split(PIECE)]
    means = torch.stack([part.mean(0) * math.sqrt(len(part)) for part in pieces]) @ white
    voices = torch.linalg.svd(means, full_matrices=False).Vh[:VOICES]
    points = torch.cat(normal) @ white
    points = points - points @ voices.T @ voices
    variant = torch.linalg.eigh(points.T.cov(correction=0)).eigenvectors[:, -tokenizer.config.directions :]
    return (white @ variant).T


def keep_numbers(tokenizer: SemanticTokenizer, old: SemanticTokenizer, corpus: Corpus) -> None:
    """Gives each cluster the number of the old one that it co-occurs with most often, as far as that is free: language
    models of the old tokens then have little to relearn."""
    size = len(tokenizer.centroids)
    old.to(tokenizer.centroids.device)
    together = torch.bincount(own_labels(old, corpus) * size + own_labels(tokenizer, corpus), minlength=size * size)
    numbers: dict[int, int] = {}  # by cluster
    taken: set[int] = set()
    for pair in together.argsort(descending=True, stable=True).tolist():
        number, cluster = divmod(pair, size)
        if number not in taken and cluster not in numbers:
            numbers[cluster] = number
            taken.add(number)
    tokenizer.centroids.copy_(tokenizer.centroids[sorted(numbers, key=numbers.__getitem__)])


def losses(training: TokenizerTraining, mel: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy and accuracy on masked tokens, then on the others: four numbers."""
    batch, length = target.shape
    masked = draw_mask(batch, length, generator).to(target.device)
    with autocast(target.device):
        logits = training.logits(normalise(training.tokenizer, mel), masked).float()
    figures = []
    for chosen in (masked, ~masked):
        guess, label = logits[chosen], target[chosen]
        figures += [F.cross_entropy(guess, label), (guess.argmax(-1) == label).float().mean()]
    return torch.stack(figures)


@torch.no_grad()
def validate(training: TokenizerTraining, corpus: Corpus, labels: np.ndarray, length: int) -> dict:
    """Losses and accuracies on the validation split, and the share of the most frequent label."""
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


def main() -> None:
    parser = arguments(__doc__, minutes=45)
    parser.add_argument("--recipe", choices=RECIPES, default="speech", help="recipe that gives the sizes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a crop")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--clusters", type=int, help="size of the semantic vocabulary; the recipe's by default")
    add_matrices(parser)
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    chosen, features = recipe.sizes, FEATURES[recipe.domain]
    spec = dataclasses.replace(chosen.tokens, semantic_vocabulary=args.clusters or chosen.tokens.semantic_vocabulary)
    corpora = {s: load_corpus(args.data, s, spec.sample_rate, args.runs / "audio") for s in ("train", "valid")}
    training = TokenizerTraining(features.config(chosen.tokenizer), chosen.tokens)
    before = warm_start(args, "tokenizer", training.tokenizer)
    trainer = Trainer("tokenizer", args, training, rate=args.rate, betas=(0.9, 0.98), weight_decay=0.01, warmup=400)
    before = trainer.extra.setdefault("before", before)  # of the first run, if this one resumes
    tokenizer, device, length = training.tokenizer, trainer.device, int(args.seconds * spec.semantic_rate)
    if trainer.step == 0:
        if not args.warm_start:
            set_statistics(tokenizer, corpora["train"])
        with trainer.first_alone():
            for stale in trainer.folder.glob("labels*"):
                stale.unlink(missing_ok=True)

    def round_now() -> int:
        return 2 if args.warm_start else 1 + sum(trainer.progress > start for start in ROUNDS)

    def labels_of(number: int) -> dict[str, np.ndarray]:
        files = {split: trainer.folder / f"labels{number}_{split}.npy" for split in corpora}
        with trainer.first_alone():
            if not all(file.is_file() for file in files.values()):
                if number == 1:
                    labels = clustered(lambda corpus: features.points(tokenizer, corpus, device), corpora)
                else:
                    own = finish(training.eval(), corpora["train"], CLUSTERS)
                    labels = {split: own_labels(own, corpus) for split, corpus in corpora.items()}
                    training.train()
                for split, file in files.items():
                    np.save(file, labels[split].short().cpu().numpy())
            return {split: np.load(file).astype(np.int64) for split, file in files.items()}

    rng = np.random.default_rng((args.seed, trainer.step, trainer.rank))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    number, began = round_now(), trainer.step
    labels = labels_of(number)
    for _ in trainer:
        if number < round_now():
            number = round_now()
            labels = labels_of(number)
            training.head.reset_parameters()
            trainer.broadcast()
        first = rng.integers(0, len(labels["train"]) - length, args.batch)
        mel, target = batch_of(tokenizer, corpora["train"], labels["train"], first, length)
        figures = losses(training, perturb(mel, generator, features.voices), target, generator)
        trainer.update(figures[0] + UNMASKED_WEIGHT * figures[2], dict(zip(FIGURES, figures, strict=True)))
        if trainer.due():
            trainer.log(valid=True, round=number, **validate(training, corpora["valid"], labels["valid"], length))
    trainer.log(
        valid=True, finished=True, round=number, **validate(training, corpora["valid"], labels["valid"], length)
    )
    part, tokens = args.runs / "parts" / "tokenizer.safetensors", dataclasses.asdict(spec)
    if trainer.rank or (trainer.step == began and _is_of(part, trainer.step, tokens)):
        return  # clustering again would change last bits, and with them the identity that other parts depend on
    own = matrices(args, "tokenizer")
    shipped = finish(training.eval(), corpora["train"], spec.semantic_vocabulary, own)
    if args.warm_start:
        old, _ = load_part(args.runs, "tokenizer")
        assert isinstance(old, SemanticTokenizer)
        if len(old.centroids) == len(shipped.centroids):
            keep_numbers(shipped, old, corpora["valid"])
    about = {
        "config": dataclasses.asdict(shipped.config),
        "tokens": tokens,
        "trained": {"steps": trainer.step, "minutes": round(trainer.seconds / 60, 1), **before},
    }
    save_part(part, shipped, about, own)


def _is_of(part: Path, steps: int, tokens: dict[str, Any]) -> bool:
    """Whether a part exists that so many steps trained for these tokens."""
    if not part.is_file():
        return False
    about = read_about(part)
    return (about["trained"].get("steps"), about["tokens"]) == (steps, tokens)


if __name__ == "__main__":
    main()
