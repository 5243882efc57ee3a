"""Calibrates a bundle's out-of-distribution thresholds: `familiar_bits` and `familiar_semantic_bits` of its
config.json.

    python -m audiolm_cli.training.parts.ood_threshold --model weights/speech --data DATA --runs RUNS \\
        [--other runs/piano_corpus --other-runs runs/piano]

Prints the two thresholds: the 99th percentile of the bits (`likelihood.OodScores`) of prompts from DATA's validation
split, and 0.4 bits less than the 1st percentile of their semantic bits. Then, for each corpus in DATA, the share of its
prompts beyond thresholds from all other corpora; and the share of out-of-distribution prompts, from OTHER, beyond the
thresholds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_cli import pipeline
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.checks import threads
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.language_models.likelihood import ood_scores
from audiolm_cli.training.corpora.data import Clip, Corpus, load_corpus

SHARE, BELOW = 0.99, 0.4
PROMPTS = 600


def stretches(corpus: Corpus, samples: int, count: int, seed: int = 0) -> list[tuple[Clip, int]]:
    """`count` random recordings that are long enough, each with the start of a random stretch of `samples`; raises
    InputError if none is."""
    rng, long = np.random.default_rng(seed), [clip for clip in corpus.clips if clip.samples >= samples]
    if not long:
        raise InputError(f"no recording is as long as {samples} samples")
    chosen = [long[n] for n in rng.integers(len(long), size=count)]
    return [(clip, int(rng.integers(clip.samples - samples + 1))) for clip in chosen]


def prompts(corpus: Corpus, samples: int, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The same stretches as `float32 [samples]` each."""
    for clip, start in stretches(corpus, samples, count, seed):
        yield corpus.samples(clip)[start : start + samples]


def strange(bundle: Bundle, corpus: Corpus, count: int = PROMPTS) -> np.ndarray:
    """Out-of-distribution scores of prompts of the bundle's default length, `[count, 2]`: surprise, semantic bits."""
    config, tokens = bundle.config, bundle.config.tokens
    samples = round(config.prompt_seconds * tokens.semantic_rate) * tokens.samples_per_semantic
    found = []
    for prompt in prompts(corpus, samples, count):
        heard = postfilter.without_rumble(prompt, tokens.sample_rate, config.output.high_pass)
        encoded = pipeline.encode(bundle, heard)
        found.append(ood_scores(bundle.semantic, bundle.coarse, encoded.semantic, encoded.codes))
    return np.array(found)


def limits(found: np.ndarray) -> tuple[float, float]:
    """`familiar_bits` and `familiar_semantic_bits` from the scores of recordings in distribution."""
    return float(np.quantile(found[:, 0], SHARE)), max(0.0, float(np.quantile(found[:, 1], 1 - SHARE)) - BELOW)


def beyond(found: np.ndarray, limits: tuple[float, float]) -> float:
    """The share of recordings beyond the thresholds."""
    return float(((found[:, 0] > limits[0]) | (found[:, 1] < limits[1])).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibrates a bundle's out-of-distribution thresholds.")
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv, in distribution")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches")
    parser.add_argument("--other", type=Path, help="folder with manifest.tsv, out of distribution")
    parser.add_argument("--other-runs", type=Path, default=Path("runs/piano"), help="folder for the caches of OTHER")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="number of prompts, in and out of distribution")
    parser.add_argument("--threads", type=threads(1), default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        bundle = bundles.load(options.model, device="cpu")
        rate = bundle.config.tokens.sample_rate
        corpus = load_corpus(options.data, "valid", rate, options.runs / "audio")
        names = sorted({clip.corpus for clip in corpus.clips})
        parts = [Corpus(corpus.audio, [clip for clip in corpus.clips if clip.corpus == name]) for name in names]
        own = [strange(bundle, part, -(-options.prompts // len(parts))) for part in parts]
        limit = limits(np.concatenate(own))
        found: dict[str, Any] = {"familiar_bits": round(limit[0], 2), "familiar_semantic_bits": round(limit[1], 2)}
        for n, name in enumerate(names if len(names) > 1 else []):
            others = limits(np.concatenate(own[:n] + own[n + 1 :]))
            found[f"{name or 'others'}, by the rest"] = beyond(own[n], others)
        found["median"] = round(float(np.median(np.concatenate(own)[:, 0])), 2)
        if options.other:
            corpus = load_corpus(options.other, "valid", rate, options.other_runs / "audio")
            other = strange(bundle, corpus, options.prompts)
            found |= {"other_median": round(float(np.median(other[:, 0])), 2), "other_beyond": beyond(other, limit)}
    except AudioLMError as error:
        sys.exit(f"familiar: {error}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
