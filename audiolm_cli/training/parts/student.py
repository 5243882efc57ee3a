"""Trains the semantic tokenizer as a student of Whisper's encoder, or of the notes that were played.

    python -m audiolm_cli.training.parts.student --data DATA --minutes 45 [--resume] [--synthetic FOLDER --hours 30]
    python -m audiolm_cli.training.parts.student --data CORPUS --minutes 45 [--resume] --recipe piano --teacher notes

The classes are k-means clusters of what a teacher says of clean recordings: of a layer's states (`teacher`), or of
the notes (`note_teacher`). The student, a small Conformer with bounded look-ahead, learns to predict them from
augmented audio: other rooms, microphones, vocal tracts and lines (`augmentation`); the pitch of music stays. Labels
are computed once, into RUNS/teacher, and resume after an interruption; torchrun divides the recordings among its
processes. Heads for all of SIZES train together; --clusters chooses the tokenizer's, even after the run has ended
(--resume).

In some crops the end is replaced by silence, but the labels before it stay. So tokens at the end of a prompt, where the
look-ahead is missing, are good guesses instead of noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from audiolm_cli.bundles.bundle import round_to_disk, save_part, whole, write_tensors
from audiolm_cli.config import TokenizerConfig, TokenSpec
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.augmentation import Changes, changed
from audiolm_cli.training.corpora.data import Clip, Corpus, load_corpus
from audiolm_cli.training.corpora.piano_notes import read_notes
from audiolm_cli.training.parts import note_teacher, teacher
from audiolm_cli.training.parts.kmeans import kmeans, members
from audiolm_cli.training.parts.tokenizer import normalise, set_statistics, warped
from audiolm_cli.training.recipes import RECIPES
from audiolm_cli.training.trainer import Trainer, add_matrices, arguments, autocast, matrices, warm_start

SIZES = (512, 1024, 2048)  # cluster counts
FITTED_SECONDS = 3600  # of recordings that the clusters are fitted on
TOKEN = teacher.TOKEN_FRAMES * teacher.FRAME  # samples
REAL_SHARE = 0.8  # of the crops, if there is synthetic speech too: its one clean voice is learned quickly
CUT_CHANCE = 0.25  # that a crop ends in silence
UNKNOWN = -1  # a label to ignore
MUSIC = Changes(rate_chance=0.0, room_chance=0.15, band_chance=0.1, noise=(15.0, 45.0), noise_chance=0.3)


@dataclass(frozen=True)
class Clusters:
    """Clusters of a teacher's states by token: mean and scale of each dimension, as a few are huge, and centroids by
    their number."""

    mean: Tensor
    scale: Tensor
    centroids: dict[int, Tensor]

    @classmethod
    def of_states(cls, states: Tensor) -> Clusters:
        """Clusters of states `[N, D]`, normalised."""
        mean, scale = states.mean(0), 1 / states.std(0)
        points = (states - mean) * scale
        return cls(mean, scale, {size: kmeans(points, size) for size in SIZES})

    @classmethod
    def of_notes(cls, points: Tensor) -> Clusters:
        """Clusters of points `[N, D]` of notes."""
        centroids = {size: note_teacher.centroids(points, size) for size in SIZES}
        return cls(torch.zeros(points.shape[1]), torch.ones(points.shape[1]), centroids)

    @classmethod
    def load(cls, file: Path) -> Clusters:
        found = load_file(file)
        centroids = {int(name.removeprefix("centroids")): found[name] for name in found if name.startswith("centroids")}
        return cls(found["mean"], found["scale"], centroids)

    def save(self, file: Path) -> None:
        centroids = {f"centroids{size}": value for size, value in self.centroids.items()}
        write_tensors(file, {"mean": self.mean, "scale": self.scale, **centroids})

    def label(self, points: Tensor) -> np.ndarray:
        """A teacher's points `[tokens, D]` of a recording -> `int16 [tokens, len(SIZES)]`."""
        points = (points - self.mean) * self.scale
        return torch.stack([members(points, self.centroids[size]) for size in SIZES], 1).short().cpu().numpy()


@dataclass(frozen=True)
class Teaching:
    """What differs between teachers: the points `float32 [T // 640, D]` that one has for a recording of a folder, how
    these are clustered, and how audio is augmented. Of `music`, classes are of notes, and no vocal tract is changed."""

    name: str
    points: Callable[[Corpus, Clip], Tensor]
    clusters: Callable[[Tensor], Clusters]
    changes: Changes = field(default_factory=Changes)
    music: bool = False


def teaching_of(args: argparse.Namespace) -> Teaching:
    """The teacher that is asked for; it reads its weights or notes when it is first needed."""
    if args.teacher == "notes":

        @functools.cache
        def notes() -> dict[str, np.ndarray]:
            return read_notes(args.data)

        return Teaching(
            "notes",
            lambda corpus, clip: note_teacher.points(notes()[clip.path], clip.samples // TOKEN),
            Clusters.of_notes,
            MUSIC,
            music=True,
        )

    @functools.cache
    def encoder() -> teacher.WhisperEncoder:
        return teacher.load_encoder(args.teacher).to(torch.device(args.device))

    return Teaching(
        f"Whisper {args.teacher}, layer {args.layer}",
        lambda corpus, clip: encoder().tokens(corpus.samples(clip), args.layer),
        Clusters.of_states,
    )


class Lesson:
    """A corpus with its labels: `labels` int16 [tokens, len(SIZES)], clip `n`'s from token `first[n]` on."""

    def __init__(self, corpus: Corpus, file: Path):
        self.corpus, self.file = corpus, file
        self.counts = np.array([clip.samples // TOKEN for clip in corpus.clips])
        self.first = np.concatenate([[0], self.counts.cumsum()])
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole(file) as part, part.open("wb") as out:
                np.save(out, np.full((int(self.first[-1]), len(SIZES)), UNKNOWN, np.int16))
        self.labels = np.load(file, mmap_mode="r+")
        if self.labels.shape != (self.first[-1], len(SIZES)):
            raise ValueError(f"{file} was made from other recordings: remove it")

    def make(self, teaching: Teaching, clusters: Clusters, share: tuple[int, int]) -> None:
        """With `share` (i, n), labels every n-th recording from the i-th on that has no labels yet, in random order: an
        interrupted run leaves some of every corpus."""
        order = np.random.default_rng(0).permutation(len(self.corpus.clips))
        for number in order[share[0] :: share[1]]:
            start, end = self.first[number], self.first[number + 1]
            if end > start and self.labels[start, 0] == UNKNOWN:
                self.labels[start:end] = clusters.label(teaching.points(self.corpus, self.corpus.clips[number]))
        self.labels.flush()

    def known(self) -> np.ndarray:
        """The numbers of the labelled recordings."""
        lasting = np.flatnonzero(self.counts)
        return lasting[self.labels[self.first[lasting], 0] != UNKNOWN]

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The numbers of recordings that rows are sampled from: those labelled when the first row was drawn."""
        return self.known()

    def row(self, tokens: int, rng: np.random.Generator, how: Changes | None) -> tuple[np.ndarray, np.ndarray]:
        """Stretches of successive recordings, `float32 [tokens * 640]`, and labels `[tokens, len(SIZES)]`, UNKNOWN
        beyond a recording's end. The first stretch starts anywhere, the others where a recording does."""
        audio = np.zeros(tokens * TOKEN, np.float32)
        labels = np.full((tokens, len(SIZES)), UNKNOWN, np.int16)
        filled = 0
        while tokens - filled >= 8:
            number = int(self.numbers[rng.integers(len(self.numbers))])
            clip, count = self.corpus.clips[number], int(self.counts[number])
            wanted = tokens - filled
            start = 0 if filled else int(rng.integers(max(1, count - wanted // 2)))
            shift = int(rng.integers(TOKEN // 2)) if how else 0  # samples: half of the token grid
            room = wanted * TOKEN
            longest = int(np.ceil(room * how.rate[1])) + 1 if how else room
            first = clip.offset + start * TOKEN + shift
            samples = self.corpus.audio[first : min(first + longest, clip.offset + clip.samples)]
            heard, rate = samples.astype(np.float32) / 32768, 1.0
            if how:
                heard, rate = changed(np.pad(heard, (0, longest - len(heard))), rng, how, room)
            place = np.floor((np.arange(wanted) + 0.5) * rate + shift / TOKEN).astype(int) + start
            inside = place[place < count]
            said = min(len(inside), wanted)
            audio[filled * TOKEN : filled * TOKEN + min(len(heard), said * TOKEN)] = heard[: said * TOKEN]
            labels[filled : filled + said] = self.labels[self.first[number] + inside[:said]]
            filled += max(said, 1)
        return audio, labels


class Student(nn.Module):
    """The tokenizer with a head for each number of classes."""

    def __init__(self, config: TokenizerConfig, dropout: float = 0.0):
        super().__init__()
        self.tokenizer = SemanticTokenizer(config, TokenSpec(semantic_vocabulary=SIZES[0]), dropout)
        self.tokenizer.classes.requires_grad_(False)  # replaced by one of the heads in the end
        # names of digits alone would count as repeated layers, which Muon would train
        self.heads = nn.ModuleDict({f"of_{size}": nn.Linear(config.width, size) for size in SIZES})

    def logits(self, mel: Tensor) -> list[Tensor]:
        """Log-mel `[B, M, bins]` -> logits `[B, S, size]` of every head."""
        hidden = self.tokenizer.hidden(normalise(self.tokenizer, mel))
        return [head(hidden) for head in self.heads.values()]

    @torch.no_grad()
    def match_attacks(self, lesson: Lesson, tokens: int, rows: int = 96) -> None:
        """Shifts the biases of attacks until as many tokens of clean recordings have one as should.

        The likeliest class of a chord that is not clearly heard is often one without an attack, of which there are few:
        the classes of chords share their likelihood.
        """
        audio, labels = batch_of([lesson], rows, tokens, np.random.default_rng(0), None)
        mel = [self.tokenizer.log_mel(some.to(self.tokenizer.mel_mean.device)) for some in audio.split(8)]
        logits = [torch.cat(parts) for parts in zip(*(self.logits(some) for some in mel), strict=True)]
        known = labels[..., 0] != UNKNOWN
        for number, (size, guess) in enumerate(zip(SIZES, logits, strict=True)):
            quiet = note_teacher.sustained_classes(size)
            lead = (guess[..., quiet:].amax(-1) - guess[..., :quiet].amax(-1)).float().cpu()[known]
            wanted = (labels[..., number][known] >= quiet).float().mean()
            head: nn.Linear = self.heads[f"of_{size}"]  # type: ignore[assignment]
            head.bias[quiet:] -= lead.quantile(1 - wanted).to(head.bias)

    def finished(self, clusters: int, in_int8: tuple[str, ...]) -> SemanticTokenizer:
        """The tokenizer to ship, with the head of `clusters` classes, at its precision on disk: matrices with these
        name prefixes in int8."""
        spec = dataclasses.replace(TokenSpec(), semantic_vocabulary=clusters)
        tokenizer = SemanticTokenizer(self.tokenizer.config, spec).eval()
        own = {k: v for k, v in self.tokenizer.state_dict().items() if not k.startswith("classes.")}
        head = {f"classes.{k}": v for k, v in self.heads[f"of_{clusters}"].state_dict().items()}
        tokenizer.load_state_dict({k: v.cpu() for k, v in (own | head).items()})
        round_to_disk(tokenizer, in_int8)
        return tokenizer


def cut(audio: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Replaces the end of a row, from a random token on, with silence, in place."""
    end = int(rng.integers(len(labels) // 4, len(labels)))
    audio[end * TOKEN :] = 0
    labels[end:] = UNKNOWN


def batch_of(
    lessons: list[Lesson], count: int, tokens: int, rng: np.random.Generator, how: Changes | None
) -> tuple[Tensor, Tensor]:
    """Audio `[B, T]` and labels `int64 [B, S, len(SIZES)]`."""
    rows = []
    for _ in range(count):
        lesson = lessons[0] if len(lessons) == 1 or rng.random() < REAL_SHARE else lessons[1]
        audio, labels = lesson.row(tokens, rng, how)
        if how and rng.random() < CUT_CHANCE:
            cut(audio, labels, rng)
        rows.append((audio, labels))
    audios, all_labels = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(audios)), torch.from_numpy(np.stack(all_labels)).long()


def losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy and accuracy of every head, `[len(SIZES), 2]`."""
    figures = []
    known = labels[..., 0] != UNKNOWN
    for number, guess in enumerate(logits):
        own, label = guess[known].float(), labels[..., number][known]
        figures.append(torch.stack([F.cross_entropy(own, label), (own.argmax(-1) == label).float().mean()]))
    return torch.stack(figures)


@torch.no_grad()
def validate(student: Student, lesson: Lesson, tokens: int, rows: int = 96) -> dict[str, float]:
    """Losses and accuracies on clean validation recordings."""
    student.eval()
    rng, figures = np.random.default_rng(0), []
    device = student.tokenizer.mel_mean.device
    for _ in range(rows // 8):
        audio, labels = batch_of([lesson], 8, tokens, rng, None)
        with autocast(device):
            logits = student.logits(student.tokenizer.log_mel(audio.to(device)))
        figures.append(losses(logits, labels.to(device)))
    student.train()
    mean = torch.stack(figures).mean(0).tolist()
    return {f"{name}_{size}": round(value, 4) for size, pair in zip(SIZES, mean, strict=True)
            for name, value in zip(("loss", "accuracy"), pair, strict=True)}  # fmt: skip


def lessons_of(args: argparse.Namespace, teaching: Teaching) -> tuple[list[Lesson], Lesson]:
    """The training corpora and the validation split, all labelled (this process's share is labelled here)."""
    share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = args.runs / "teacher"
    corpora = {s: load_corpus(args.data, s, RATE, args.runs / "audio") for s in ("train", "valid")}
    if args.synthetic:
        corpora["synthetic"] = load_corpus(
            args.synthetic, "train", RATE, args.runs / f"synthetic_{args.hours:g}h", args.hours
        )
    lessons = {name: Lesson(corpus, folder / f"{name}.npy") for name, corpus in corpora.items()}
    if any(len(lesson.known()) < np.count_nonzero(lesson.counts) for lesson in lessons.values()):
        torch.set_num_threads(args.threads or 1)
        file = folder / "clusters.safetensors"
        if not file.is_file():
            corpus, rng, points, seconds = corpora["train"], np.random.default_rng(0), [], 0.0
            for clip in (corpus.clips[i] for i in rng.permutation(len(corpus.clips))):
                points.append(teaching.points(corpus, clip))
                seconds += clip.samples / RATE
                if seconds > FITTED_SECONDS:
                    break
            teaching.clusters(torch.cat(points)).save(file)
        clusters = Clusters.load(file)
        for name, lesson in lessons.items():
            lesson.make(teaching, clusters, share)
            print(json.dumps({"labelled": name, "share": share}), flush=True)
    train = [lessons[name] for name in ("train", "synthetic") if name in lessons]
    return train, lessons["valid"]


def main() -> None:
    parser = arguments(__doc__, minutes=45)
    parser.add_argument("--synthetic", type=Path, help="folder of synthetic speech to train on as well")
    parser.add_argument("--hours", type=float, default=30.0, help="of it")
    parser.add_argument("--teacher", choices=[*sorted(teacher.PACKAGES), "notes"], default="base")
    parser.add_argument("--layer", type=int, default=4, help="of the teacher")
    parser.add_argument("--layers", type=int, help="of the student; the recipe's number by default")
    parser.add_argument("--right", type=int, help="tokens of look-ahead in each layer; the recipe's by default")
    parser.add_argument("--recipe", choices=RECIPES, default="speech", help="whose sizes")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a crop")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.0, help="drawing it takes an eighth of a step on a CPU")
    parser.add_argument(
        "--clusters", type=int, choices=SIZES, help="semantic tokens in the end; the recipe's number by default"
    )
    parser.add_argument("--labels-only", action="store_true", help="only compute the teacher's labels")
    add_matrices(parser)
    args = parser.parse_args()
    teaching = teaching_of(args)
    train, valid = lessons_of(args, teaching)
    if args.labels_only:
        return
    chosen = RECIPES[args.recipe].sizes
    sizes = {"layers": args.layers, "right": args.right}
    config = dataclasses.replace(
        chosen.tokenizer, directions=0, units="classes", **{k: v for k, v in sizes.items() if v is not None}
    )
    student = Student(config, args.dropout)
    before = warm_start(args, "tokenizer", student.tokenizer)
    trainer = Trainer("student", args, student, rate=args.rate, betas=(0.9, 0.98), weight_decay=0.01, warmup=60)
    before = trainer.extra.setdefault("before", before)  # of the first run, if this one resumes
    tokens, tokenizer = round(args.seconds * RATE / TOKEN), student.tokenizer
    if trainer.step == 0 and not args.warm_start:
        set_statistics(tokenizer, train[0].corpus)
    rng, how = np.random.default_rng((args.seed, trainer.step, trainer.rank)), teaching.changes
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in trainer:
        audio, labels = batch_of(train, args.batch, tokens, rng, how)
        mel = tokenizer.log_mel(audio.to(trainer.device))
        mel = mel if teaching.music else warped(mel, generator)
        with trainer.autocast():
            logits = student.logits(mel)
        figures = losses(logits, labels.to(trainer.device))
        trainer.update(figures[:, 0].mean(), {f"accuracy_{s}": a for s, a in zip(SIZES, figures[:, 1], strict=True)})
        if trainer.due():
            trainer.log(valid=True, **validate(student, valid, tokens))
    trainer.log(valid=True, finished=True, **validate(student, valid, tokens))
    if trainer.rank:
        return
    if teaching.music:
        student.eval().match_attacks(train[0], tokens)
    spec = dataclasses.replace(chosen.tokens, semantic_vocabulary=args.clusters or chosen.tokens.semantic_vocabulary)
    about = {
        "config": dataclasses.asdict(config),
        "tokens": dataclasses.asdict(spec),
        "trained": {
            "steps": trainer.step,
            "minutes": round(trainer.seconds / 60, 1),
            "teacher": teaching.name,
            **before,
        },
    }
    own = matrices(args, "tokenizer")
    save_part(
        args.runs / "parts" / "tokenizer.safetensors", student.finished(spec.semantic_vocabulary, own), about, own
    )


if __name__ == "__main__":
    main()
