"""Semantic tokens straight from MIDI, in other keys and tempi: much more music for stage 1 than is rendered.

    python -m audiolm_cli.training.corpora.played --data DATA --runs runs/piano --passes 8 [--processes 2]

The tokenizer's classes were defined by notes (`student --teacher notes`), so the tokens of what is played are known
without hearing it. Stage 1 trains on them as on synthetic speech: first mostly on these, at last on those that the
tokenizer heard, whose mistakes they lack. Each pass plays every training piece once, in a key and a tempo of its own;
numbers from FIRST on, so that none is what a corpus of `piano --passes` has. Existing passes are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import torch
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.training.corpora.piano import Piece, read_pieces, varied
from audiolm_cli.training.corpora.piano_notes import between
from audiolm_cli.training.corpora.piano_variety import Variety
from audiolm_cli.training.corpora.tokenize import (
    is_of_tokenizer,
    load_part,
    save_semantic,
    synthetic_file,
    vocabulary_of,
)
from audiolm_cli.training.parts.kmeans import members
from audiolm_cli.training.parts.note_teacher import SECONDS, points
from audiolm_cli.training.parts.student import Clusters

FIRST = 100


def tokens_of(piece: Piece, number: int, centroids: Tensor, seed: int) -> Tensor:
    """The tokens `int16 [S]` of a piece, played the `number`-th time."""
    played = varied(piece, number, Variety(), seed) if number else piece
    return members(points(between(played.notes, 0.0, played.seconds), int(played.seconds / SECONDS)), centroids).short()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with midi")
    parser.add_argument("--runs", type=Path, default=Path("runs/piano"), help="folder of the tokenizer")
    parser.add_argument("--passes", type=int, default=8, help="over the training pieces")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    _, identity = load_part(args.runs, "tokenizer")
    spec = dataclasses.replace(TokenSpec(), semantic_vocabulary=vocabulary_of(args.runs))
    centroids = Clusters.load(args.runs / "teacher" / "clusters.safetensors").centroids[spec.semantic_vocabulary]
    with Pool(args.processes, torch.set_num_threads, (1,)) as pool:
        pieces = read_pieces(args.data, pool)
        passes = [("valid", 0), *(("train", number) for number in range(FIRST, FIRST + args.passes))]
        for split, number in passes:
            file = synthetic_file(args.runs, split, number)
            if is_of_tokenizer(file, identity):
                continue
            own = [piece for piece in pieces if piece.split == split]
            work = partial(tokens_of, number=number, centroids=centroids, seed=args.seed)
            rows = pool.map(work, own, chunksize=4)
            made = [(f"{piece.name}/{number}", row) for piece, row in zip(own, rows, strict=True)]
            save_semantic(file, spec, made, identity)
            print(f"{file}: {sum(map(len, rows)) * SECONDS / 3600:.1f} h", flush=True)


if __name__ == "__main__":
    main()
