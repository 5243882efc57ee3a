"""How strange recordings must be to a bundle before it says so: `familiar_bits` of its config.json.

    python -m audiolm_cli.training.familiar --model weights/speech --data DATA --runs RUNS \\
        [--other runs/piano_corpus --other-runs runs/piano]

Prints the bits (`likelihood.surprise`) that 99 % of the prompts from DATA's validation split stay below, and
the share of the prompts from OTHER's, recordings of another kind, that are above them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from audiolm_cli import bundle as bundles
from audiolm_cli import pipeline
from audiolm_cli.bundle import Bundle
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.likelihood import surprise
from audiolm_cli.options import threads
from audiolm_cli.training.data import Clip, Corpus, load_corpus

SHARE = 0.99
PROMPTS = 600


def stretches(corpus: Corpus, samples: int, count: int, seed: int = 0) -> list[tuple[Clip, int]]:
    """`count` random recordings that are long enough, each with the first of so many `samples` somewhere in it; raises
    InputError where none is."""
    rng, long = np.random.default_rng(seed), [clip for clip in corpus.clips if clip.samples >= samples]
    if not long:
        raise InputError(f"no recording is as long as {samples} samples")
    chosen = [long[n] for n in rng.integers(len(long), size=count)]
    return [(clip, int(rng.integers(clip.samples - samples + 1))) for clip in chosen]


def prompts(corpus: Corpus, samples: int, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The same as `float32 [samples]` each."""
    for clip, start in stretches(corpus, samples, count, seed):
        yield corpus.samples(clip)[start : start + samples]


def surprises(bundle: Bundle, corpus: Corpus, count: int = PROMPTS) -> np.ndarray:
    """Bits of prompts that are as long as the bundle asks for, `[count]`."""
    tokens = bundle.config.tokens
    samples = round(bundle.config.prompt_seconds * tokens.semantic_rate) * tokens.samples_per_semantic
    encoded = (pipeline.encode(bundle, prompt) for prompt in prompts(corpus, samples, count))
    return np.array([surprise(bundle.semantic, bundle.coarse, prompt.semantic, prompt.codes) for prompt in encoded])


def main() -> None:
    parser = argparse.ArgumentParser(description="How strange recordings must be before a bundle says so.")
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv: what the bundle is for")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches")
    parser.add_argument("--other", type=Path, help="folder with manifest.tsv: what it is not for")
    parser.add_argument("--other-runs", type=Path, default=Path("runs/piano"), help="folder for the caches of that")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each kind")
    parser.add_argument("--threads", type=threads(1), default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        bundle = bundles.load(options.model, device="cpu")
        rate = bundle.config.tokens.sample_rate
        own = surprises(bundle, load_corpus(options.data, "valid", rate, options.runs / "audio"), options.prompts)
        limit = float(np.quantile(own, SHARE))
        found = {"familiar_bits": round(limit, 2), "median": round(float(np.median(own)), 2)}
        if options.other:
            corpus = load_corpus(options.other, "valid", rate, options.other_runs / "audio")
            other = surprises(bundle, corpus, options.prompts)
            found |= {"other_median": round(float(np.median(other)), 2), "other_above": float((other > limit).mean())}
    except AudioLMError as error:
        sys.exit(f"familiar: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
