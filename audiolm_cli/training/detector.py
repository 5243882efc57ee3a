"""Trains the detector of a bundle: its own outputs against recordings, both through its codec.

    python -m audiolm_cli.training.detector --model weights/speech --data DATA --runs RUNS --minutes 4

Needs what audiolm_cli.training.outputs made, of both splits. Recordings and outputs are changed alike before the codec:
level, equaliser, band, noise, MP3 and Ogg. Of the recordings a third has been through the codec once before, as every
output has; otherwise its traces would tell, and whatever somebody kept as tokens would count as generated. Writes
parts/detector.safetensors, and with --report figures on speakers and pieces of `valid`: accuracy beside a detector that
hears raw audio, and false alarms on each corpus by a detector that never heard it.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from audiolm_cli import bundle as bundles
from audiolm_cli.bundle import NEEDS, Bundle, round_to_disk, save_part, write_tensors
from audiolm_cli.config import DetectorConfig, to_json
from audiolm_cli.detector import WINDOW_SECONDS, Detector, heard
from audiolm_cli.errors import AudioLMError
from audiolm_cli.soundstream import SoundStream
from audiolm_cli.training.data import Corpus, load_corpus
from audiolm_cli.training.outputs import load_outputs, outputs_of
from audiolm_cli.training.tokenize import equaliser
from audiolm_cli.training.trainer import Trainer, arguments

BATCH = 64
SECONDS = 4.0  # of a recording: Common Voice has hardly any that are longer than 6
ALTERED = 0.5  # share of training material that was changed
REAL_WEIGHT = 10.0  # a false alarm counts as much as so many outputs missed


class Item(NamedTuple):
    """Log-mel spectra `float32 [frames, bins]` of a stretch, whether it was made, and the corpus that it, or its voice,
    is from ("" from none)."""

    mel: Tensor
    made: bool
    corpus: str


def altered(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """The same `float32 [T]` as it may come from elsewhere: another tone colour, less band, noise, lossy formats."""
    bins = len(samples) // 2 + 1
    gains = equaliser(bins, rng, 3)
    if rng.random() < 0.25:
        gains[int(rng.uniform(0.4, 0.9) * bins) :] = -60
    changed = np.fft.irfft(np.fft.rfft(samples) * 10 ** (gains / 20), len(samples))
    if rng.random() < 0.4:
        noise = rng.standard_normal(len(samples))
        noise = np.convolve(noise, np.ones(int(rng.integers(1, 6))), "same")  # the more, the darker
        share = np.sqrt(np.mean(changed**2) / np.mean(noise**2))
        changed = changed + noise * share * 10 ** (-rng.uniform(10, 45) / 20)
    changed = (changed * (0.5 / (np.abs(changed).max() + 1e-9))).astype(np.float32)
    if rng.random() < 0.4:
        container, subtype = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))[int(rng.integers(2))]
        file = io.BytesIO()
        level = float(rng.uniform(0.1, 0.95))
        soundfile.write(file, changed, rate, format=container, subtype=subtype, compression_level=level)
        file.seek(0)
        changed = soundfile.read(file, dtype="float32")[0]
    return changed


def recordings(corpus: Corpus, samples: int, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Stretches `float32 [samples]` of `count` recordings with the name of their corpus, as many of each corpus where
    it has so many that are long enough."""
    rng, result = np.random.default_rng(seed), []
    names = sorted({clip.corpus for clip in corpus.clips})
    for name in names:
        long = [clip for clip in corpus.clips if clip.corpus == name and clip.samples >= samples]
        for n in rng.permutation(len(long))[: -(-count // len(names))]:
            start = int(rng.integers(long[n].samples - samples + 1))
            result.append((name, corpus.samples(long[n])[start : start + samples]))
    return result


@torch.inference_mode()
def items(
    bundle: Bundle,
    detector: Detector,
    corpus: Corpus,
    outputs: Sequence[tuple[str, np.ndarray]],
    seed: int,
    share: float,
    raw: bool,
) -> list[Item]:
    """Outputs, and twice as many recordings, as the detector hears them: `raw`, or through the codec. A `share` of them
    is altered before."""
    rng, rate = np.random.default_rng(seed), bundle.config.tokens.sample_rate
    codec: SoundStream | None = None if raw else bundle.codec
    real = recordings(corpus, round(SECONDS * rate), 2 * len(outputs), seed)
    result = []
    for number, (source, samples) in enumerate([*outputs, *real]):
        made = number < len(outputs)
        if not made and rng.random() < 1 / 3:
            samples = heard(bundle.codec, samples)[0].numpy()
        if rng.random() < share:
            samples = altered(samples, rate, rng)
        result.append(Item(detector.mel(heard(codec, samples))[0], made, source))
    return result


def cached(file: Path, make: Callable[[], list[Item]]) -> list[Item]:
    """The items of a file, made and written where it is not there yet."""
    if not file.is_file():
        made = make()
        tensors = {f"{n:06d}": item.mel.half() for n, item in enumerate(made)}
        sources = json.dumps([(item.made, item.corpus) for item in made])
        write_tensors(file, tensors, {"sources": sources})
    with safe_open(file, framework="pt") as handle:
        sources = json.loads(handle.metadata()["sources"])
        return [Item(handle.get_tensor(f"{n:06d}").float(), *source) for n, source in enumerate(sources)]


def windows(chosen: Sequence[Item], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One stretch of `size` frames of each item, `float32 [B, size, bins]`, and whether it was made, `float32 [B]`."""
    starts = [int(rng.integers(len(item.mel) - size + 1)) for item in chosen]
    mels = torch.stack([item.mel[start : start + size] for item, start in zip(chosen, starts, strict=True)])
    return mels, torch.tensor([float(item.made) for item in chosen])


def train(
    args: argparse.Namespace, name: str, detector: Detector, training: Sequence[Item], held: Sequence[Item]
) -> Detector:
    """Trains a detector on items, as many of both kinds in a batch, and of each corpus the same share of both, so that
    rooms and microphones tell nothing. Logs its figures on those `held` out."""
    size = round(WINDOW_SECONDS * detector.rate / detector.hop)
    made_items, real = ([item for item in training if item.made is made] for made in (True, False))
    voices, recorded = (Counter(item.corpus for item in kind) for kind in (made_items, real))
    shares = np.array([voices[item.corpus] / recorded[item.corpus] for item in real])
    shares /= shares.sum()
    trainer = Trainer(name, args, detector, rate=2e-3, weight_decay=0.02, validate_seconds=60)
    for step in trainer:
        rng = np.random.default_rng([args.seed, step])
        chosen = [made_items[n] for n in rng.integers(len(made_items), size=BATCH // 2)]
        chosen += [real[n] for n in rng.choice(len(real), BATCH // 2, p=shares)]
        mels, made = windows(chosen, size, rng)
        # at another level, so that it does not decide, and without some bands, so that several do
        mels = mels + torch.from_numpy(rng.normal(0, 0.3, (BATCH, 1, 1))).float()
        first, width = rng.integers(detector.bins), rng.integers(detector.bins // 5)
        mels[:, :, first : first + width] = mels.mean()
        logits = detector(mels.to(trainer.device)).cpu()
        weights = torch.where(made > 0, 1.0, REAL_WEIGHT)
        loss = F.binary_cross_entropy_with_logits(logits, made * 0.98 + 0.01, weights)
        trainer.update(loss, {"right": ((logits > 0) == (made > 0)).float().mean()})
        if trainer.due():
            trainer.log(valid=True, finished=False, **summary(detector, held, trainer.device))
    round_to_disk(detector)
    trainer.log(valid=True, finished=True, **summary(detector, held, trainer.device))
    return detector.cpu().eval()


def summary(detector: Detector, held: Sequence[Item], device: torch.device) -> dict[str, float]:
    """How much of each source is called made, in windows of two seconds, and how often that is right."""
    detector.eval()
    found = {source: round(row["windows"], 4) for source, row in figures(detector, held, device).items()}
    detector.train()
    return found


@torch.inference_mode()
def figures(
    detector: Detector, held: Sequence[Item], device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """By source, the share that is called made: of windows of two seconds, and of whole stretches; of all, how often
    that is right, both kinds counting the same."""
    size = round(WINDOW_SECONDS * detector.rate / detector.hop)
    called: dict[str, list[tuple[float, float]]] = {}
    for item in held:
        parts = torch.stack([item.mel[start : start + size] for start in range(0, len(item.mel) - size + 1, size)])
        logits = detector(parts.to(device))
        found = float((logits > 0).float().mean()), float(logits.mean() > 0)
        called.setdefault("made" if item.made else item.corpus, []).append(found)
    rows = {
        source: dict(zip(("windows", "stretches"), np.mean(f, 0).tolist(), strict=True)) for source, f in called.items()
    }
    real = [found for source, values in called.items() if source != "made" for found in values]
    if "made" in rows and real:
        alarms = np.mean(real, 0).tolist()
        rows["right"] = {k: (rows["made"][k] + 1 - a) / 2 for k, a in zip(rows["made"], alarms, strict=True)}
    return rows


def main() -> None:
    parser = arguments(__doc__, minutes=4)
    parser.add_argument("--model", default="weights/speech", help="name or folder of the bundle")
    parser.add_argument("--report", action="store_true", help="also train what the figures compare it with")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        bundle = bundles.load(args.model, device="cpu")
    except AudioLMError as error:
        sys.exit(f"detector: {error}")
    tokens, config = bundle.config.tokens, bundle.config.detector or DetectorConfig()

    def fresh() -> Detector:
        torch.manual_seed(args.seed)
        return Detector(config, tokens, dropout=0.2)

    def material(raw: bool) -> tuple[list[Item], list[Item]]:
        found = []
        for split, seed, share in (("train", 1, ALTERED), ("valid", 2, 0.0)):
            corpus = load_corpus(args.data, split, tokens.sample_rate, args.runs / "audio")
            outputs = load_outputs(args.runs, split, bundle, corpus)
            make = functools.partial(items, bundle, fresh(), corpus, outputs, seed, share, raw)
            name = f"{split}-{'raw' if raw else 'codec'}-{len(outputs)}-{outputs_of(bundle)}.safetensors"
            found.append(cached(args.runs / "heard" / name, make))
        return found[0], found[1]

    training, held = material(raw=False)
    detector = train(args, "detector", fresh(), training, held)
    report = {"through the codec": figures(detector, held)}
    about = {
        "config": to_json(config),
        "tokens": to_json(tokens),
        "depends": {source: bundle.config.depends[source]["self"] for source in NEEDS["detector"]},
        "trained": {
            "minutes": args.minutes,
            "outputs": sum(item.made for item in training),
            "right": round(report["through the codec"]["right"]["windows"], 3),
        },
    }
    save_part(args.runs / "parts" / "detector.safetensors", detector, about)
    if args.report:
        for corpus in sorted({item.corpus for item in training} - {""}):
            others = [item for item in training if item.corpus != corpus]
            unheard = [item for item in (*training, *held) if item.corpus == corpus]
            alone = train(args, f"detector-without-{corpus}", fresh(), others, unheard)
            report[f"never heard {corpus}"] = figures(alone, unheard)
        training, held = material(raw=True)
        report["raw"] = figures(train(args, "detector-raw", fresh(), training, held), held)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
