"""Trains one of the three language models on the tokens that `tokenize` made.

    python -m audiolm_cli.training.parts.lm --stage coarse --data DATA --minutes 25 [--resume]

The crops of a batch share one shape, drawn from the stage's SHAPES. Some of stage 2's crops begin with a reference from
elsewhere in the same track, followed by the gap token. The loss is that of the stage's kind: cross entropy over the
tokens that the stage predicts, each quantizer among its own codes. The part that ships has the weights with the lowest
validation loss.

Stage 1 also trains on the tokens of `tokenize --synthetic`, if there are any. Their share of the batches goes linearly
from the first to the second number of --synthetic-share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from audiolm_cli.bundles.bundle import NEEDS, save_part
from audiolm_cli.config import Layout
from audiolm_cli.errors import ModelError
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.language_models.tokens import Batch, StageName
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.training.corpora.tokenize import TokenData, Track, load_tokens
from audiolm_cli.training.recipes import RECIPES
from audiolm_cli.training.trainer import Best, Trainer, add_matrices, arguments, autocast, matrices, warm_start


@dataclass(frozen=True)
class Shape:
    """The shape of a batch's crops: seconds of reference (0: none), seconds of crop, relative frequency."""

    reference: float
    crop: float
    share: float = 1.0


SHAPES: dict[str, tuple[Shape, ...]] = {
    "semantic": (Shape(0, 10, 2), Shape(0, 3.2)),
    "coarse": (Shape(0, 3.6, 3), Shape(1.2, 2.4, 2), Shape(2, 4), Shape(3, 7), Shape(0, 10)),
    "fine": (Shape(0, 3), Shape(0, 1.4, 2)),
    "parallel": (Shape(0, 6), Shape(0, 3, 3)),
    "frames": (Shape(3, 7, 3), Shape(3, 4, 2), Shape(1.6, 2.4), Shape(0, 10, 2), Shape(0, 4)),
}
# seconds of audio in a batch
BATCH_SECONDS = {"semantic": 120.0, "coarse": 18.0, "fine": 9.0, "parallel": 72.0, "frames": 90.0}


def crop_kind(layout: Layout, stage: StageName) -> str:
    """A stage's key in SHAPES and BATCH_SECONDS: its layout if that has an entry, else its name."""
    return layout if layout in SHAPES else stage


def drawn_shape(kind: str, rng: np.random.Generator) -> Shape:
    """A random shape, with probability proportional to `share`."""
    shares = np.array([shape.share for shape in SHAPES[kind]])
    return SHAPES[kind][rng.choice(len(shares), p=shares / shares.sum())]


class Crops:
    """Draws crops of token data for a stage's model."""

    def __init__(self, data: list[TokenData], model: Stack, seed: int | tuple[int, ...]):
        self.data, self.model, self.spec = data, model, data[0].spec
        self.rng = np.random.default_rng(seed)
        self.tracks = [(source, track) for source in data for track in source.tracks]
        self.lengths = np.array([track.length for _, track in self.tracks])

    def draw(self, shape: Shape, count: int) -> list[tuple[TokenData, Track, int, int]]:
        """Draws (data, track, first token of the crop, first token of its reference), longer tracks more often."""
        crop, reference = self._tokens(shape.crop), self._tokens(shape.reference)
        room = self.lengths - crop - reference
        weight = np.where(room >= 0, room + crop, 0).astype(np.float64)
        if not weight.any():
            return []
        chosen = self.rng.choice(len(self.tracks), count, p=weight / weight.sum())
        result = []
        for index in chosen:
            data, track = self.tracks[index]
            gap = int(self.rng.integers(0, room[index] + 1))  # between the two, or around them
            start = int(self.rng.integers(0, room[index] - gap + 1))
            first, second = start, start + gap
            if self.rng.random() < 0.5 or not reference:  # the reference comes first in the recording
                result.append((data, track, second + reference, first))
            else:
                result.append((data, track, first, second + crop))
        return result

    def batch(self, shape: Shape, seconds: float) -> Batch | None:
        drawn = self.draw(shape, max(1, round(seconds / (shape.crop + shape.reference))))
        return self.build(drawn, shape) if drawn else None

    def build(self, drawn: list, shape: Shape, *, shuffled: bool = False, others: bool = False) -> Batch:
        """The batch of the drawn crops. For validation, `shuffled` gives each the semantic tokens of another crop, and
        `others` the reference of another crop."""
        crop, reference = self._tokens(shape.crop), self._tokens(shape.reference)
        pieces = [data.cut(track, first, crop) for data, track, first, _ in drawn]
        references = [data.cut(track, first, reference) for data, track, _, first in drawn] if reference else []
        if shuffled:
            semantic, codes = zip(*pieces, strict=True)
            pieces = list(zip(semantic[1:] + semantic[:1], codes, strict=True))
        if others:
            references = references[1:] + references[:1]
        ends = [track.length == first + crop for _, track, first, _ in drawn]
        return self.model.batch(pieces, references, ends)

    def _tokens(self, seconds: float) -> int:
        return round(seconds * self.spec.semantic_rate)


@torch.no_grad()
def validation_bits(
    model: Stack, data: list[TokenData], batches: int = 6, conditioning: bool = True
) -> dict[str, object]:
    """Bits per token on fixed crops: overall, per quantizer, and for stage 2 with `conditioning` also for wrong inputs.

    Compare with `bits_reference`: `bits_shuffled` has the semantic tokens of other crops, `bits_other_speaker` the
    reference of another track.
    """
    crops = Crops(data, model, seed=1)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()

    def bits(shape: Shape, **change: bool) -> np.ndarray:
        crops.rng = np.random.default_rng(1)
        total = []
        for _ in range(batches):
            drawn = crops.draw(shape, 8)
            if not drawn:
                continue
            with autocast(device, next(model.parameters()).dtype == torch.float32):
                losses = model.token_losses(crops.build(drawn, shape, **change).to(device))
            total.append(losses.float().mean((0, 1)).cpu().numpy())
        return np.mean(total, 0) / np.log(2) if total else np.array([np.nan])

    plain = bits(Shape(0, 3 if model.stage == "fine" else 3.6))
    figures: dict[str, object] = {"bits": round(float(plain.mean()), 4)}
    if len(plain) > 1:
        figures["bits_per_quantizer"] = [round(float(b), 3) for b in plain]
    if model.stage == "coarse" and conditioning:
        shape = Shape(3, 4)
        for name, change in (("reference", {}), ("shuffled", {"shuffled": True}), ("other_speaker", {"others": True})):
            figures[f"bits_{name}"] = round(float(bits(shape, **change).mean()), 4)
    model.train(was_training)
    return figures


def train(
    trainer: Trainer,
    model: Stack,
    batch: Callable[[], Batch | None],
    validated: Callable[[], Mapping[str, Any]],
) -> Best:
    """Trains a model on the batches of `batch()` until the trainer's time is over. Returns the state of the trainer's
    module with the lowest bits of `validated()`. Where `batch()` returns None, the step does nothing."""
    for _ in trainer:
        if (drawn := batch()) is None:
            continue
        with trainer.autocast(), parametrize.cached():
            loss = model.training_loss(drawn.to(trainer.device))
        trainer.update(loss, {"bits": loss / np.log(2)})
        if trainer.due():
            trainer.keep_best(validated())
    return trainer.keep_best(validated(), finished=True)


def main() -> None:
    parser = arguments(__doc__, minutes=25)
    parser.add_argument("--stage", choices=("semantic", "coarse", "fine"), required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="speech", help="recipe that gives the model's sizes")
    parser.add_argument("--batch-seconds", type=float, help="seconds of audio in a batch")
    parser.add_argument("--dropout", type=float, default=0.0, help="use 0.1 if training takes several epochs")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--synthetic-share",
        type=float,
        nargs=2,
        default=(0.9, 0.3),
        metavar=("FIRST", "LAST"),
        help="share of synthetic speech in stage 1's batches, at first and at last",
    )
    parser.add_argument("--coarse", type=int, help="quantizers of stage 2; by default as in the tokens")
    add_matrices(parser)
    args = parser.parse_args()
    stage: StageName = args.stage
    recorded, valid = ([split_at(data, args.coarse) for data in load_tokens(args.runs, s)] for s in ("train", "valid"))
    read, read_valid = (load_synthetic(args.runs, recorded[0], s) for s in ("synthetic", "synthetic-valid"))
    if stage != "semantic" or not read:
        read, read_valid, args.synthetic_share = [], [], (0.0, 0.0)
    config = getattr(RECIPES[args.recipe].sizes, stage)
    model = stage_model(config, recorded[0].spec, stage, args.dropout)
    before = warm_start(args, stage, model)
    kind = crop_kind(config.layout, stage)
    trainer = Trainer(stage, args, model, rate=args.rate, weight_decay=0.1, warmup=80, validate_seconds=480)
    before = trainer.extra.setdefault("before", before)  # of the first run, if this one resumes
    corpora = [Crops(data, model, (args.seed, trainer.step, trainer.rank)) for data in (recorded, read) if data]
    shapes = np.random.default_rng((args.seed, trainer.step))  # the same in all processes, since they wait for another

    def batch() -> Batch | None:
        shape = drawn_shape(kind, shapes)
        share = np.interp(trainer.progress, (0, 1), args.synthetic_share)
        crops = corpora[int(shapes.random() < share)]
        return crops.batch(shape, args.batch_seconds or BATCH_SECONDS[kind])

    def validated() -> dict[str, object]:
        figures = validation_bits(model, valid, batches=2)
        if read_valid:
            figures["bits_synthetic"] = validation_bits(model, read_valid, batches=2)["bits"]
        return figures

    best = train(trainer, model, batch, validated)
    if trainer.rank:
        return
    model.load_state_dict(best[1])
    depends = {source: recorded[0].sources[source] for source in NEEDS[stage]}
    minutes, bits = round(trainer.seconds / 60, 1), round(best[0], 3)
    trained = {"steps": trainer.step, "minutes": minutes, "valid_bits": bits, **before}
    about = {
        "config": dataclasses.asdict(config),
        "tokens": dataclasses.asdict(recorded[0].spec),
        "depends": depends,
        "trained": trained,
    }
    save_part(args.runs / "parts" / f"{stage}.safetensors", model, about, matrices(args, stage))


def load_synthetic(runs: Path, real: TokenData, split: str) -> list[TokenData]:
    """The tokens of synthetic speech, if there are any. Raises ModelError if another tokenizer made them than the real
    ones."""
    if not any((runs / "tokens").glob(f"{split}_*.safetensors")):
        return []
    found = load_tokens(runs, split)
    if found[0].sources["tokenizer"] != real.sources["tokenizer"]:
        raise ModelError(f"{runs}/tokens: {split} was made with another tokenizer; remove it")
    return found


def split_at(data: TokenData, coarse: int | None) -> TokenData:
    """The same tokens with `coarse` quantizers for stage 2 and the rest for stage 3."""
    return dataclasses.replace(data, spec=dataclasses.replace(data.spec, coarse=coarse or data.spec.coarse))


if __name__ == "__main__":
    main()
