"""Trains a bundle's detector, a classifier of its own outputs against recordings, both as tokens of the bundle.

    python -m audiolm_cli.training.parts.detector --model weights/speech --data DATA --runs RUNS

Needs the outputs of audiolm_cli.training.parts.detector_data for both splits. Half of the data is augmented first
(level, equaliser, bandwidth, noise, MP3, Ogg), and all of it is cut at a random place, so that frames do not begin
where the bundle's did. A third of the recordings has been through the codec before, as every output has; otherwise the
codec's traces would decide, and recordings stored as tokens would count as generated. Outputs carry no watermark: it is
detected by itself, and it makes outputs less likely to the stages; with half of them marked, unmarked ones would be
missed more often. Writes parts/detector.safetensors. --report adds figures on speakers and pieces of `valid`: accuracy
beside a detector on spectra of the raw audio, and false alarms on each corpus by detectors trained without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import NEEDS, Bundle, round_to_disk, save_part, write_tensors
from audiolm_cli.config import DetectorConfig
from audiolm_cli.detector import (
    WINDOW_SECONDS,
    Detector,
    LikelihoodDetector,
    SpectralDetector,
    judge,
    make_detector,
)
from audiolm_cli.errors import AudioLMError
from audiolm_cli.fields import to_json
from audiolm_cli.provenance import watermark
from audiolm_cli.request import ContinueRequest
from audiolm_cli.training.corpora.augmentation import equaliser, transcoded
from audiolm_cli.training.corpora.data import Corpus, load_corpus
from audiolm_cli.training.parts.detector_data import BATCH as OUTPUT_BATCH
from audiolm_cli.training.parts.detector_data import SECONDS as OUTPUT_SECONDS
from audiolm_cli.training.parts.detector_data import load_outputs, outputs_of
from audiolm_cli.training.parts.ood_threshold import prompts
from audiolm_cli.training.recipes import RECIPES
from audiolm_cli.training.trainer import Trainer, arguments

BATCH = 64
SECONDS = 4.0  # of a recording: few of Common Voice's are longer than 6
ALTERED, THROUGH_CODEC = 0.5, 1 / 3  # shares of training data, and of recordings
WINDOW = round(WINDOW_SECONDS * 50)  # frames
MINUTES = {"traces": 0.2, "spectra": 4.0}  # of training on one core; "traces" memorises its recordings with more
REAL_WEIGHT = 8.0  # a false alarm costs as much as this many missed outputs


class Example(NamedTuple):
    """A stretch's features `float32 [frames, K]`, whether it was generated, the corpus of its recording or voice (""
    for none), and how it was processed before ("" for not at all)."""

    features: Tensor
    made: bool
    corpus: str
    handling: str = ""


def altered(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Augments audio `float32 [T]`: equalisation, bandwidth, noise, lossy formats."""
    bins = len(samples) // 2 + 1
    gains = equaliser(bins, rng, 3)
    if rng.random() < 0.25:
        gains[int(rng.uniform(0.4, 0.9) * bins) :] = -60
    changed = np.fft.irfft(np.fft.rfft(samples) * 10 ** (gains / 20), len(samples))
    if rng.random() < 0.4:
        noise = rng.standard_normal(len(samples))
        noise = np.convolve(noise, np.ones(int(rng.integers(1, 6))), "same")  # longer is darker
        share = np.sqrt(np.mean(changed**2) / np.mean(noise**2))
        changed = changed + noise * share * 10 ** (-rng.uniform(10, 45) / 20)
    changed = (changed * (0.5 / (np.abs(changed).max() + 1e-9))).astype(np.float32)
    if rng.random() < 0.4:
        container, subtype = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))[int(rng.integers(2))]
        level = float(rng.uniform(0.1, 0.95))
        changed = transcoded(changed, rate, format=container, subtype=subtype, compression_level=level)
    return changed


def recordings(corpus: Corpus, samples: int, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Stretches `float32 [samples]` of `count` recordings with the name of their corpus, equally many per corpus as far
    as it has enough that are long enough."""
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
    listen: Callable[[np.ndarray], Tensor],
    corpus: Corpus,
    outputs: Sequence[tuple[str, np.ndarray]],
    seed: int,
    share: float,
) -> list[Example]:
    """Features, by `listen`, of the outputs and of twice as many recordings; a `share` of them is augmented first."""
    rng, tokens = np.random.default_rng(seed), bundle.config.tokens
    cut = tokens.samples_per_semantic
    real = recordings(corpus, round(SECONDS * tokens.sample_rate) + cut, 2 * len(outputs), seed)
    result = []
    for number, (source, samples) in enumerate([*outputs, *real]):
        made, handling = number < len(outputs), []
        if not made and rng.random() < THROUGH_CODEC:
            samples = pipeline.decode(bundle, pipeline.encode(bundle, samples))
            handling.append("through the codec")
        if rng.random() < share:
            samples = altered(samples, tokens.sample_rate, rng)
            handling.append("changed")
        result.append(Example(listen(samples[rng.integers(cut) :]), made, source, ", ".join(handling)))
    return result


def cached(file: Path, make: Callable[[], list[Example]]) -> list[Example]:
    """A file's items, computed and written on first use."""
    if not file.is_file():
        made = make()
        tensors = {f"{n:06d}": item.features.half() for n, item in enumerate(made)}
        sources = json.dumps([item[1:] for item in made])
        write_tensors(file, tensors, {"sources": sources})
    with safe_open(file, framework="pt") as handle:
        sources = json.loads(handle.metadata()["sources"])
        return [Example(handle.get_tensor(f"{n:06d}").float(), *source) for n, source in enumerate(sources)]


def windows(chosen: Sequence[Example], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One stretch of `size` frames per item, `float32 [B, size, K]`, and whether it was generated, `float32 [B]`."""
    starts = [int(rng.integers(len(item.features) - size + 1)) for item in chosen]
    stretches = torch.stack([item.features[start : start + size] for item, start in zip(chosen, starts, strict=True)])
    return stretches, torch.tensor([float(item.made) for item in chosen])


def blurred(spectra: Tensor, rng: np.random.Generator) -> Tensor:
    """Augments log-mel spectra `[B, F, bins]`: random levels, so that levels do not decide, and a random few bands
    masked for the whole batch, so that others must count."""
    count, _, bins = spectra.shape
    spectra = spectra + torch.from_numpy(rng.normal(0, 0.3, (count, 1, 1))).float()
    first, width = rng.integers(bins), rng.integers(bins // 5)
    spectra[:, :, first : first + width] = spectra.mean()
    return spectra


def lasting(args: argparse.Namespace, detector: Detector) -> argparse.Namespace:
    """The arguments, with the usual minutes for the kind of detector unless given."""
    usual = MINUTES["traces" if isinstance(detector, LikelihoodDetector) else "spectra"]
    return argparse.Namespace(**{**vars(args), "minutes": args.minutes or usual})


def train(
    args: argparse.Namespace, name: str, detector: Detector, training: Sequence[Example], held: Sequence[Example]
) -> Detector:
    """Trains a detector on items. Batches have as many of both kinds, with the same shares of corpora, so that rooms
    and microphones give nothing away. Logs figures on the `held` out items."""
    made_items, real = ([item for item in training if item.made is made] for made in (True, False))
    voices, recorded = (Counter(item.corpus for item in kind) for kind in (made_items, real))
    shares = np.array([voices[item.corpus] / recorded[item.corpus] for item in real])
    shares /= shares.sum()
    if isinstance(detector, LikelihoodDetector):
        everything = torch.cat([item.features for item in training])
        detector.mean.copy_(everything.mean(0))
        detector.scale.copy_(1 / (everything.std(0) + 1e-3))
    trainer = Trainer(
        name, lasting(args, detector), detector, rate=2e-3, weight_decay=0.3, warmup=50, validate_seconds=60
    )
    for step in trainer:
        rng = np.random.default_rng([args.seed, step])
        chosen = [made_items[n] for n in rng.integers(len(made_items), size=BATCH // 2)]
        chosen += [real[n] for n in rng.choice(len(real), BATCH // 2, p=shares)]
        stretches, made = windows(chosen, WINDOW, rng)
        if isinstance(detector, SpectralDetector):
            stretches = blurred(stretches, rng)
        logits = detector(stretches.to(trainer.device)).cpu()
        weights = torch.where(made > 0, 1.0, REAL_WEIGHT)
        loss = F.binary_cross_entropy_with_logits(logits, made * 0.98 + 0.01, weights)
        trainer.update(loss, {"right": ((logits > 0) == (made > 0)).float().mean()})
        if trainer.due():
            trainer.log(valid=True, finished=False, **summary(detector, held, trainer.device))
    round_to_disk(detector)
    trainer.log(valid=True, finished=True, **summary(detector, held, trainer.device))
    return detector.cpu().eval()


def summary(detector: Detector, held: Sequence[Example], device: torch.device) -> dict[str, float]:
    """The share of each source called generated, in windows of two seconds, and the accuracy."""
    detector.eval()
    found = {source: round(row["windows"], 4) for source, row in figures(detector, held, device).items()}
    detector.train()
    return found


@torch.inference_mode()
def figures(
    detector: Detector, held: Sequence[Example], device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """By source, outputs or a corpus, and by how it was processed: the share called generated, of windows of two
    seconds and of whole stretches. Over all, the accuracy, with both kinds weighted equally."""
    called: dict[str, list[tuple[float, float]]] = {}
    alarms = []
    for item in held:
        starts = range(0, len(item.features) - WINDOW + 1, WINDOW // 2)
        logits = detector(torch.stack([item.features[start : start + WINDOW] for start in starts]).to(device))
        found = float((logits > 0).float().mean()), float(logits.mean() > 0)
        if not item.made:
            alarms.append(found)
        source = "made" if item.made else item.corpus
        for group in (source, f"{source}, {item.handling or 'as it is'}"):
            called.setdefault(group, []).append(found)
    rows = {
        source: dict(zip(("windows", "stretches", "of"), (*np.mean(f, 0).tolist(), len(f)), strict=True))
        for source, f in sorted(called.items())
    }
    if "made" in rows and alarms:
        wrong = dict(zip(("windows", "stretches"), np.mean(alarms, 0).tolist(), strict=True))
        rows["right"] = {kind: (rows["made"][kind] + 1 - share) / 2 for kind, share in wrong.items()}
    return rows


def joins(bundle: Bundle, corpus: Corpus, count: int) -> dict[str, float]:
    """Judges `count` recordings of 6 s and their continuations by 6 s with the bundle's defaults, by the bundle's
    detector: the shares called generated (`marked`: with the watermark), and the median distance in seconds between
    the start of the last detected segment and the join."""
    rate = bundle.config.tokens.sample_rate
    given = list(prompts(corpus, round(OUTPUT_SECONDS * rate), count, seed=5))
    asked = [pipeline.Prompt(samples, place, seed=place) for place, samples in enumerate(given)]
    request = ContinueRequest(duration=OUTPUT_SECONDS)
    made = list(pipeline.continue_(bundle, request, asked, batch_size=OUTPUT_BATCH))
    mark = watermark.bundle_id(bundle.config.name)
    kinds = {
        "recordings": given,
        "continued": [output.waveform for output in made],
        "marked": [watermark.embed(output.waveform, rate, mark, output.prompt_samples) for output in made],
    }
    judged = {kind: [judge(bundle, samples) for samples in sounds] for kind, sounds in kinds.items()}
    off = [
        abs(judgement.segments[-1][0] - output.prompt_samples / rate)
        for judgement, output in zip(judged["continued"], made, strict=True)
        if judgement.segments
    ]
    shares = {kind: float(np.mean([(j.probability or 0) > 0.5 for j in found])) for kind, found in judged.items()}
    return {**shares, "s from the join": float(np.median(off)) if off else float("nan")}


def main() -> None:
    parser = arguments(__doc__, minutes=0)
    parser.add_argument("--model", default="weights/speech", help="name or folder of the bundle")
    parser.add_argument("--recipe", choices=RECIPES, default="speech", help="whose detector, and sizes")
    parser.add_argument("--report", action="store_true", help="also train what the figures compare it with")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        bundle = bundles.load(args.model, device="cpu", dtype="float32")
    except AudioLMError as error:
        sys.exit(f"detector: {error}")
    tokens, config = bundle.config.tokens, RECIPES[args.recipe].sizes.detector or DetectorConfig()

    def fresh() -> Detector:
        torch.manual_seed(args.seed)
        return make_detector(dataclasses.replace(bundle.config, detector=config), dropout=0.2)

    def material(kind: str, listen: Callable[[np.ndarray], Tensor]) -> tuple[list[Example], list[Example]]:
        found = []
        for split, seed, share in (("train", 1, ALTERED), ("valid", 2, 0.0)):
            corpus = load_corpus(args.data, split, tokens.sample_rate, args.runs / "audio")
            outputs = load_outputs(args.runs, split, bundle, corpus)
            make = functools.partial(items, bundle, listen, corpus, outputs, seed, share)
            name = f"{split}-{kind}-{len(outputs)}-{outputs_of(bundle.folder)}.safetensors"
            found.append(cached(args.runs / "heard" / name, make))
        return found[0], found[1]

    training, held = material(config.hears, functools.partial(fresh().features, bundle))
    detector = train(args, "detector", fresh(), training, held)
    report: dict[str, dict[str, dict[str, float]]] = {config.hears: figures(detector, held)}
    about = {
        "config": to_json(config),
        "tokens": to_json(tokens),
        "depends": {source: bundle.config.depends[source]["self"] for source in NEEDS["detector"]},
        "trained": {
            "minutes": lasting(args, detector).minutes,
            "bundle": outputs_of(bundle.folder),
            "outputs": sum(item.made for item in training),
            "right": round(report[config.hears]["right"]["windows"], 3),
        },
    }
    save_part(args.runs / "parts" / "detector.safetensors", detector, about)
    if args.report:
        for corpus in sorted({item.corpus for item in training} - {""}):
            others = [item for item in training if item.corpus != corpus]
            unheard = [item for item in (*training, *held) if item.corpus == corpus]
            alone = train(args, f"detector-without-{corpus}", fresh(), others, unheard)
            report[f"never heard {corpus}"] = figures(alone, unheard)
        raw = SpectralDetector(DetectorConfig("spectra", (16, 32, 48, 64)), tokens, dropout=0.2)
        training, held = material("raw", raw.spectra)
        report["raw"] = figures(train(args, "detector-raw", raw, training, held), held)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
