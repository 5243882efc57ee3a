"""Generates outputs of a bundle with many seeds and settings, on which its detector is trained.

    python -m audiolm_cli.training.parts.detector_data --model weights/speech --data DATA --runs RUNS --batches 30

Each batch comes from one command (continue, generate, or resynth in another's voice) on recordings of the split, with
its own sampling settings; every third batch has the bundle's. Existing batches are kept, so the same command line with
more batches resumes. Outputs carry no watermark.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import Bundle, write_tensors
from audiolm_cli.bundles.folder import sha256
from audiolm_cli.checks import threads
from audiolm_cli.config import Sampling
from audiolm_cli.errors import AudioLMError, ModelError
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from audiolm_cli.training.corpora.data import Corpus, load_corpus
from audiolm_cli.training.parts.ood_threshold import prompts, stretches

SECONDS = 6.0  # of an output
BATCH = 16
BATCHES, VALID_BATCHES = 65, 10
WAYS = ("continue", "continue", "continue", "generate", "resynth")  # in turn


@dataclass(frozen=True)
class BatchPlan:
    """The settings of a batch."""

    way: str
    sampling: Sampling


def plan(bundle: Bundle, number: int) -> BatchPlan:
    """A batch's settings, determined by its number alone."""
    own, rng = bundle.config.sampling, np.random.default_rng([7, number])
    way = WAYS[number % len(WAYS)]
    if number % 3 == 0:
        return BatchPlan(way, own)
    temperature = [float(t * factor) for t, factor in zip(own.temperature, rng.uniform(0.8, 1.25, 3), strict=True)]
    top_p = [float(p) for p in rng.uniform(0.85, 1.0, 3)]
    changed: dict[str, Any] = {"temperature": tuple(temperature), "top_p": tuple(top_p)}
    return BatchPlan(way, replace(own, **changed, guidance=float(rng.uniform(0, own.guidance + 1))))


def needed(bundle: Bundle, number: int) -> float:
    """Seconds of each recording that a batch starts from."""
    return bundle.config.prompt_seconds if plan(bundle, number).way == "continue" else SECONDS


def make(bundle: Bundle, corpus: Corpus, number: int) -> np.ndarray:
    """Generates a batch; returns the new audio, `float32 [BATCH, SECONDS * rate]`."""
    how, rate, seconds = plan(bundle, number), bundle.config.tokens.sample_rate, needed(bundle, number)
    length = round(SECONDS * rate)
    given = list(prompts(corpus, round(seconds * rate), BATCH + 1, seed=number))
    asked = [pipeline.Prompt(samples, place) for place, samples in enumerate(given[:BATCH])]
    if how.way == "continue":
        request = ContinueRequest.with_sampling(how.sampling, seed=number, duration=SECONDS, prompt_seconds=seconds)
        made = pipeline.continue_(bundle, request, asked, batch_size=BATCH)
    elif how.way == "generate":
        anew = GenerateRequest.with_sampling(how.sampling, seed=number, duration=SECONDS)
        made = pipeline.generate(bundle, anew, asked, batch_size=BATCH)
    else:
        again = ResynthRequest.with_sampling(how.sampling, seed=number)
        made = pipeline.resynth(bundle, again, asked, speaker=given[BATCH], batch_size=BATCH)
    return np.stack([output.waveform[output.prompt_samples :][:length] for output in made])


def voices(bundle: Bundle, corpus: Corpus, number: int) -> list[str]:
    """The corpus that the voice and room of each of a batch's outputs come from; "" for generation from nothing."""
    samples = round(needed(bundle, number) * bundle.config.tokens.sample_rate)
    found = [clip.corpus for clip, _ in stretches(corpus, samples, BATCH + 1, seed=number)]
    way = plan(bundle, number).way
    return found[:BATCH] if way == "continue" else [found[BATCH] if way == "resynth" else ""] * BATCH


def outputs_of(folder: Path) -> str:
    """Identifies the outputs of a bundle's folder, which depend on its stages and its codec."""
    digest = hashlib.sha256()
    for part in ("codec", "semantic", "coarse", "fine"):
        if (file := folder / f"{part}.safetensors").is_file():
            digest.update(sha256(file).encode())
    return digest.hexdigest()[:12]


def load_outputs(runs: Path, split: str, bundle: Bundle, corpus: Corpus) -> list[tuple[str, np.ndarray]]:
    """All of the bundle's outputs for a split, each with its voice's corpus and as `float32 [T]`; raises ModelError if
    there are none."""
    found: list[tuple[str, np.ndarray]] = []
    for file in sorted((runs / "outputs").glob(f"{split}-{outputs_of(bundle.folder)}-*.safetensors")):
        rows = load_file(file)["audio"].numpy().astype(np.float32) / 32768
        found += zip(voices(bundle, corpus, int(file.stem[-4:])), rows, strict=True)
    if not found:
        raise ModelError(f"{runs}/outputs: none of the split {split!r}; run audiolm_cli.training.parts.detector_data")
    return found


def complete(bundle: Bundle, corpus: Corpus, runs: Path, split: str, batches: int) -> None:
    """Generates the missing ones of a split's first `batches`."""
    common = f"{split}-{outputs_of(bundle.folder)}"
    for number in range(batches):
        file = runs / "outputs" / f"{common}-{number:04d}.safetensors"
        if file.is_file():
            continue
        audio = np.clip(make(bundle, corpus, number), -1, 1 - 2**-15) * 32768
        write_tensors(file, {"audio": torch.from_numpy(audio.round().astype(np.int16))})
        print(json.dumps({"written": file.name, "way": plan(bundle, number).way}), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches and outputs")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"of {BATCH} outputs, from the split `train`")
    parser.add_argument("--valid-batches", type=int, default=VALID_BATCHES, help="the same from `valid`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=threads(1), default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        bundle = bundles.load(options.model, device=options.device)
        for split, count in (("valid", options.valid_batches), ("train", options.batches)):
            corpus = load_corpus(options.data, split, bundle.config.tokens.sample_rate, options.runs / "audio")
            complete(bundle, corpus, options.runs, split, count)
    except AudioLMError as error:
        sys.exit(f"outputs: {error}")


if __name__ == "__main__":
    main()
