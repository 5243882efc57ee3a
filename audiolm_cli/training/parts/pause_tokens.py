"""Finds the semantic tokens that stand for silence: the setting `pause_tokens` of a bundle's config.json.

    python -m audiolm_cli.training.parts.pause_tokens --model weights/speech --data DATA --runs RUNS

Reads MINUTES of recordings of DATA's training split, chosen at random: the larger one knows digital silence, too. A
token's sound is quiet if its level is FAR below that of the recording's speech. A token stands for silence if most of
its sounds are quiet (SHARE), and if it is common enough to tell (LEAST). Prints `{"pause_tokens": [...]}`, as assembly
takes it, and on standard error how many of the quiet sounds have one of these tokens, and how many of these tokens'
sounds are quiet. To add the list to a bundle:

    python -m audiolm_cli.training.parts.pause_tokens --model weights/speech --data DATA > pauses.json
    python -m audiolm_cli.training.parts.assemble --unpack --out weights/speech --runs runs/more
    python -m audiolm_cli.training.parts.assemble --runs runs/more --out weights/speech --settings "$(cat pauses.json)"

The list belongs to one tokenizer: assembly drops it with another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from audiolm_cli import pipeline
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.checks import threads
from audiolm_cli.errors import AudioLMError
from audiolm_cli.training.corpora.data import Corpus, load_corpus

MINUTES = 30.0
LOUD = 95  # percentile of a recording's levels that counts as its speech's
FAR = 25.0  # dB
SHARE, LEAST = 0.6, 10


class Found(NamedTuple):
    """The tokens that stand for silence; the share of quiet sounds that have one, and of these tokens' sounds that are
    quiet."""

    tokens: list[int]
    recall: float
    precision: float


def chosen(corpus: Corpus, samples: float, seed: int = 0) -> Iterator[np.ndarray]:
    """Recordings at random, as `float32 [T]`, until they have so many samples."""
    for number in np.random.default_rng(seed).permutation(len(corpus.clips)):
        if samples <= 0:
            return
        samples -= corpus.clips[number].samples
        yield corpus.samples(corpus.clips[number])


def heard(bundle: Bundle, recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A recording's semantic tokens `int64 [S]`, and which of their sounds are quiet, `bool [S]`."""
    spec = bundle.config.tokens
    clean = postfilter.without_rumble(recording, spec.sample_rate, bundle.config.output.high_pass)
    sounds = clean[: len(clean) // spec.samples_per_semantic * spec.samples_per_semantic]
    tokens = bundle.tokenizer.tokenize(torch.from_numpy(sounds).to(bundle.device)[None])[0].cpu().numpy()
    level = pipeline.token_levels(sounds, spec)
    return tokens, level < np.percentile(level, LOUD) - FAR


def find(recordings: Iterable[tuple[np.ndarray, np.ndarray]], vocabulary: int) -> Found:
    """What stands for silence in recordings, each as `heard` returns it."""
    tokens, quiet = (np.concatenate(parts) for parts in zip(*recordings, strict=True))
    total, silent = (np.bincount(ids, minlength=vocabulary) for ids in (tokens, tokens[quiet]))
    found = np.flatnonzero((total >= LEAST) & (silent >= SHARE * total))
    listed = np.isin(tokens, found)
    both = int((listed & quiet).sum())
    return Found(found.tolist(), both / max(1, int(quiet.sum())), both / max(1, int(listed.sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of recordings")
    parser.add_argument("--threads", type=threads(1), default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        bundle = bundles.load(options.model, device="cpu")
        spec = bundle.config.tokens
        corpus = load_corpus(options.data, "train", spec.sample_rate, options.runs / "audio")
        recordings = chosen(corpus, options.minutes * 60 * spec.sample_rate)
        long = (samples for samples in recordings if len(samples) >= spec.samples_per_semantic)
        found = find((heard(bundle, samples) for samples in long), spec.semantic_vocabulary)
    except AudioLMError as error:
        sys.exit(f"pauses: {error}")
    figures = {"tokens": len(found.tokens), "recall": round(found.recall, 3), "precision": round(found.precision, 3)}
    print(json.dumps(figures), file=sys.stderr)
    print(json.dumps({"pause_tokens": found.tokens}))


if __name__ == "__main__":
    main()
