"""Fine-tunes the decoder of a bundle's codec on recordings; keeps the result only if validation improves.

Encoder and codebooks stay bit for bit, and with them all codes, so that the other parts stay valid. The losses are
those of `parts.codec --decoder-only` without its discriminators, which a bundle does not have.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, round_to_disk, write_tensors
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.training.adapting.fitting import Fitting, FittingResult, Plan, Tell
from audiolm_cli.training.adapting.recordings import corpus
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.corpora.tokenize import load_part
from audiolm_cli.training.parts import codec as parts
from audiolm_cli.training.parts.spectral_loss import MelLoss
from audiolm_cli.training.trainer import Best

PEAK_RATE = 1e-4  # a tenth of the recipe's
CROPS, CROP = 16, 0.96  # in a batch; s, less than any stretch
DECODER = "decoder."  # the prefix of its tensors in the codec


def adapt(work: Path, clips: Mapping[str, list[Clip]], sampled: int, plan: Plan, tell: Tell) -> FittingResult:
    """Trains the decoder of the codec in parts/ of `work` on the clips of `train`, and writes the codec that ships to
    adapted/: with this decoder, or unchanged if the mel distance on the clips of `valid` did not improve, decoded from
    the first `sampled` codes, which outputs have.

    Resumes from the last checkpoint. The same number of steps gives the same part, interrupted or not.
    """
    file = work / "parts" / "codec.safetensors"
    codec, _ = load_part(work, "codec")
    assert isinstance(codec, SoundStream)
    about, stored = read_about(file), load_file(file)
    codec.to(plan.device).decoder.requires_grad_(True)
    rate = about["tokens"]["sample_rate"]
    train, valid = (corpus(work / "audio", list(clips[split])) for split in ("train", "valid"))
    mel = MelLoss(rate).to(plan.device)
    audio, codes = parts.validation_codes(codec, *_validation(valid, rate, codec.hop))
    fitting = Fitting(work, "decoder", codec.decoder, plan, "mel", rate=PEAK_RATE, betas=(0.8, 0.99), muon=False)
    quantizer = parts.CodebookTrainer(codec.quantizer.codebooks.data).to(plan.device)
    size = int(CROP * rate) // codec.hop * codec.hop

    def measure() -> dict[str, float]:
        random.seed(0)  # the order of the scales, and so the last bits of their sum
        return {"mel": parts.distance(codec, audio, codes[:, :sampled], mel)}

    def trained(begin: Callable[[], None], validated: Callable[[], Mapping[str, Any]]) -> Best:
        trainer = fitting.trainer
        for step in trainer:
            begin()
            rng = np.random.default_rng((plan.seed, step))
            wanted = crops(train, CROPS, size, rng).to(plan.device)
            with torch.no_grad():
                kept = parts.kept_quantizers(CROPS, codes.shape[1]).to(plan.device)
                latents = codec.encoder(wanted, {}).float()
                latents, _ = quantizer(codec.quantizer.codebooks, latents, kept, update=False)
            with trainer.autocast():
                made = parts.reconstructions(codec, latents, rng)
            trainer.update(*parts.reconstruction_loss(wanted, made, mel))
            if trainer.due():
                trainer.keep_best(validated(), "mel")
        return trainer.keep_best(validated(), "mel", finished=True)

    before, state = fitting.run(measure, trained, tell)
    codec.decoder.load_state_dict(state)
    in_int8 = int8.MATRICES["codec"] if int8.is_used(stored) else ()
    round_to_disk(codec, in_int8)

    def save(target: Path, result: FittingResult) -> None:
        now = {"steps": result.steps, "minutes": result.minutes, "mel": result.after, "mel_before": result.before}
        about["trained"] = {**now, "before": about["trained"]}
        adapted = int8.stored(codec.state_dict(), in_int8)
        tensors = {name: tensor for name, tensor in stored.items() if not name.startswith(DECODER)}
        tensors |= {name: tensor for name, tensor in adapted.items() if name.startswith(DECODER)}
        write_tensors(target, tensors, {"about": json.dumps(about)})

    return fitting.ship(file, before, measure()["mel"], save)


def crops(train: Corpus, count: int, samples: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops at random levels, each within a clip, `float32 [count, samples]`."""
    rooms = np.array([max(0, clip.samples - samples + 1) for clip in train.clips])  # places where a crop can begin
    chosen = rng.choice(len(rooms), count, p=rooms / rooms.sum())
    starts = np.array([train.clips[n].offset + rng.integers(rooms[n]) for n in chosen])
    return parts.levelled(train, starts, samples, rng)


def _validation(valid: Corpus, rate: int, hop: int) -> tuple[Corpus, int]:
    """Clips for validation, spread evenly, and the number of samples that each has at least: 3 s, or what the longest
    one has."""
    length = min(round(parts.VALIDATED_SECONDS * rate), max(clip.samples for clip in valid.clips)) // hop * hop
    long = [clip for clip in valid.clips if clip.samples >= length]
    return Corpus(valid.audio, long[:: -(-len(long) // parts.VALIDATED_CLIPS)]), length
