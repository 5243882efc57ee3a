"""Watermark robustness: detections and false alarms in two seconds of sound, after what may happen to a file.

    python -m audiolm_cli.training.evaluation.watermark_robustness --model weights/speech --data DATA --runs RUNS \\
        [--mark perth]

Outputs come from audiolm_cli.training.parts.detector_data and are marked here; recordings of the training and the
validation split show false alarms. Needs the extra `eval`, Debian's opus-tools and ffmpeg. --mark perth measures
resemble-perth instead, at the threshold that one in a thousand of the recordings untouched exceeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from audiolm_cli.audio.files import resampled
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.errors import AudioLMError
from audiolm_cli.provenance import watermark
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus, load_corpus
from audiolm_cli.training.measures.measures import autoencoder, opus, pesq
from audiolm_cli.training.parts.detector_data import load_outputs

WINDOW = 2 * RATE  # samples
PIECE = 60  # s of recordings processed at a time
RECORDED = 3300  # windows of recordings: fewer cannot show one false alarm in a thousand
FALSE_ALARMS = 0.001  # sets the threshold of a mark without its own

Handling = Callable[[np.ndarray], np.ndarray]


def handlings(codec: SoundStream) -> dict[str, Handling]:
    """Edits and codecs that a file may go through, for audio `float32 [T]` at 16 kHz."""
    noise = np.random.default_rng(0)

    def noisy(samples: np.ndarray) -> np.ndarray:
        level = np.sqrt(np.mean(np.square(samples))) * 10 ** (-20 / 20)
        return samples + noise.standard_normal(len(samples)).astype(np.float32) * level

    def through(samples: np.ndarray) -> np.ndarray:
        whole = np.pad(samples, (0, -len(samples) % codec.hop))
        return autoencoder(codec, len(codec.quantizer.codebooks))(whole)

    return {
        "untouched": lambda x: x,
        "MP3, 64 kbit/s": mp3(64),
        "MP3, 128 kbit/s": mp3(128),
        "Opus, 16 kbit/s": opus(16),
        "Opus, 24 kbit/s": opus(24),
        "8 kHz and back": lambda x: resampled(resampled(x, RATE, 8000), 8000, RATE),
        "44.1 kHz and back": lambda x: resampled(resampled(x, RATE, 44100), 44100, RATE),
        "20 dB quieter": lambda x: np.round(x * 0.1 * 32768).astype(np.float32) / 32768,
        "noise 20 dB below": noisy,
        "8 bits": lambda x: np.round(x * 128).astype(np.float32) / 128,
        "1.02 times as fast": lambda x: resampled(x, 16320, RATE),
        "our codec": through,
    }


def mp3(kbits: int) -> Handling:
    """Through MP3 by ffmpeg; calling the result raises FileNotFoundError if that is not installed."""

    def coded(samples: np.ndarray) -> np.ndarray:
        raw = ["-f", "f32le", "-ar", str(RATE), "-ac", "1"]
        data = _ffmpeg([*raw, "-i", "-", "-b:a", f"{kbits}k", "-f", "mp3", "-"], samples.tobytes())
        return np.frombuffer(_ffmpeg(["-f", "mp3", "-i", "-", *raw, "-"], data), np.float32)

    return coded


def _ffmpeg(arguments: list[str], data: bytes) -> bytes:
    command = ["ffmpeg", "-v", "error", *arguments]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def windows(samples: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """Consecutive two-second windows from a random offset on; silent ones are skipped."""
    for start in range(int(np.random.default_rng(seed).integers(RATE)), len(samples) - WINDOW + 1, WINDOW):
        window = samples[start : start + WINDOW]
        if np.sqrt(np.mean(np.square(window))) > 1e-3:
            yield window


def recordings(corpora: Sequence[Corpus], count: int) -> list[np.ndarray]:
    """Random recordings in pieces of PIECE s, with at least `count` windows in all."""
    rng, pieces = np.random.default_rng(0), []
    for number in range(-(-count // (PIECE // 2 - 1))):
        corpus, samples = corpora[number % len(corpora)], np.zeros(0, np.float32)
        while len(samples) < PIECE * RATE:
            samples = np.concatenate([samples, corpus.samples(corpus.clips[rng.integers(len(corpus.clips))])])
        pieces.append(samples[: PIECE * RATE])
    return pieces


class Marker(Protocol):
    """A kind of watermark."""

    name: str
    threshold: float | None  # of scores, at and above which there is a mark; None: see FALSE_ALARMS

    def embed(self, samples: np.ndarray) -> np.ndarray:
        """Audio `float32 [T]` at 16 kHz with the mark."""

    def score(self, samples: np.ndarray) -> float:
        """A score that grows with the evidence for a mark."""

    def right(self, samples: np.ndarray) -> bool:
        """Whether the mark carries the right message."""


class Ours:
    """The program's own mark."""

    name = "spread spectrum"
    threshold: float | None = watermark.THRESHOLD

    def __init__(self, bundle: str):
        self.id = watermark.bundle_id(bundle)

    def embed(self, samples: np.ndarray) -> np.ndarray:
        return watermark.embed(samples, RATE, self.id)

    def score(self, samples: np.ndarray) -> float:
        return watermark.score(samples)

    def right(self, samples: np.ndarray) -> bool:
        return any(mark.bundle == self.id for mark in watermark.find(samples))


class Perth:
    """resemble-perth: an implicit mark by two neural networks, without a message."""

    name = "resemble-perth"
    threshold: float | None = None

    def __init__(self) -> None:
        from perth import PerthImplicitWatermarker

        self.model = PerthImplicitWatermarker()

    def embed(self, samples: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.apply_watermark(samples, sample_rate=RATE), np.float32)[: len(samples)]

    def score(self, samples: np.ndarray) -> float:
        return float(np.mean(self.model.get_watermark(samples, sample_rate=RATE, round=False)))

    def right(self, samples: np.ndarray) -> bool:
        return True


def cost(marker: Marker, outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """The cost of marking: PESQ against the unmarked output and its 5th percentile; the mark's distance below the audio
    in the third-octave where it is closest, dB, mean and least; seconds per second."""
    begun = time.perf_counter()
    marked = [marker.embed(output) for output in outputs]
    seconds = time.perf_counter() - begun
    scores = [pesq(output, other) for output, other in zip(outputs, marked, strict=True)]
    levels = [bands_below(output, other) for output, other in zip(outputs, marked, strict=True)]
    return {
        "PESQ": float(np.nanmean(scores)),  # NaN without speech
        "5th percentile": float(np.nanpercentile(scores, 5)),
        "dB below": float(np.mean(levels)),
        "least": float(np.min(levels)),
        "s/s": seconds * RATE / sum(map(len, outputs)),
    }


def bands_below(samples: np.ndarray, marked: np.ndarray) -> float:
    """The mark's distance below the audio in the third-octave band (100 Hz to 8 kHz) where it is closest, dB."""
    sound, mark = (watermark.thirds(x, RATE) + 1e-12 for x in (samples, marked - samples))
    return float(10 * np.log10(sound / mark).min())


def survival(
    marker: Marker, outputs: Sequence[np.ndarray], real: Sequence[np.ndarray], changes: dict[str, Handling]
) -> Iterator[tuple[str, dict[str, float]]]:
    """For each handling: the share of windows where the mark is found, and with the right message; the share of windows
    of recordings with a false alarm, their number, and their highest score."""
    marked = [marker.embed(output) for output in outputs]
    threshold = marker.threshold
    for name, change in changes.items():
        unmarked = [marker.score(w) for n, piece in enumerate(real) for w in windows(change(piece), n)]
        if threshold is None:
            threshold = float(np.quantile(unmarked, 1 - FALSE_ALARMS))
        found = [w for n, output in enumerate(marked) for w in windows(change(output), n)]
        hits = [marker.score(window) >= threshold for window in found]
        right = [hit and marker.right(window) for hit, window in zip(hits, found, strict=True)]
        yield (
            name,
            {
                "found": float(np.mean(hits)),
                "and right": float(np.mean(right)),
                "windows": len(found),
                "false alarms": float(np.mean(np.array(unmarked) >= threshold)),
                "recorded": len(unmarked),
                "highest": max(unmarked),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/speech", help="name or folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches and outputs")
    parser.add_argument("--recorded", type=int, default=RECORDED, help="windows of recordings")
    parser.add_argument("--outputs", type=int, help="so many outputs at most")
    parser.add_argument("--mark", choices=("audiolm", "perth"), default="audiolm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        bundle = bundles.load(options.model, device="cpu")
        corpora = [load_corpus(options.data, split, RATE, options.runs / "audio") for split in ("valid", "train")]
        outputs = [made for _, made in load_outputs(options.runs, "valid", bundle, corpora[0])][: options.outputs]
    except AudioLMError as error:
        sys.exit(f"marks: {error}")
    real, changes = recordings(corpora, options.recorded), handlings(bundle.codec)
    marker: Marker = Ours(bundle.config.name) if options.mark == "audiolm" else Perth()
    print(json.dumps({"mark": marker.name, **cost(marker, outputs)}), flush=True)
    for name, row in survival(marker, outputs, real, changes):
        print(json.dumps({"mark": marker.name, "handling": name, **row}), flush=True)


if __name__ == "__main__":
    main()
