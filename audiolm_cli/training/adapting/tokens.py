"""Turns recordings into tokens with the tokenizer and codec of the bundle that is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from audiolm_cli.bundles.bundle import read_about
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import TokenSpec
from audiolm_cli.fields import from_json
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.adapting.recordings import corpus
from audiolm_cli.training.corpora.data import Clip
from audiolm_cli.training.corpora.tokenize import groups, joined, load_part, write_tokens

WANTED, MOST_PASSES = 1800.0, 4  # s of audio over all passes, within so many passes
LEVEL = 3.0  # dB up or down in all passes but the first
PREPARING, LAST = 0.2, 0.35  # shares of the time after which no further pass begins, and after which one ends early
LEAST = 60.0  # s that a pass has in any case


def passes(seconds: float) -> int:
    """The number of passes over `seconds` of recordings: more for short ones."""
    return max(1, min(MOST_PASSES, round(WANTED / max(1.0, seconds))))


def tokenize(
    work: Path, clips: dict[str, list[Clip]], device: str, tell: Callable[[float], None], used: Callable[[], float]
) -> None:
    """Writes tokens/ in one pass over `valid` and several over `train`; keeps existing passes. Passes after the first
    are shifted by a part of a token and change the level, but not the voice. `tell` gets the share done. A pass
    takes recordings in random order: `used()` is the share of the time that is over, and where that is too much, the
    pass ends early and none follows."""
    (codec, codec_identity), (tokenizer, tokenizer_identity) = (
        load_part(work, part) for part in ("codec", "tokenizer")
    )
    assert isinstance(codec, SoundStream)
    assert isinstance(tokenizer, SemanticTokenizer)
    codec.to(device), tokenizer.to(device)
    spec: TokenSpec = from_json(TokenSpec, read_about(work / "parts" / "coarse.safetensors")["tokens"], "tokens")
    seconds = {name: sum(clip.samples for clip in some) / spec.sample_rate for name, some in clips.items()}
    count = passes(seconds["train"])
    total, done = seconds["valid"] + count * seconds["train"], 0.0

    def recordings(split: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        nonlocal done
        rng, had = np.random.default_rng(number), 0.0
        audio = corpus(work / "audio", clips[split])
        found = groups(audio, spec.sample_rate)
        for place in np.random.default_rng((number, 1)).permutation(len(found)):
            if had >= LEAST and used() > LAST:
                return
            group = found[place]
            samples = joined(audio, group, spec.sample_rate, rng)
            if number:
                gain = np.float32(10 ** (rng.uniform(-LEVEL, LEVEL) / 20))
                samples = (samples[rng.integers(1, spec.samples_per_semantic) :] * gain).clip(-1, 1)
            yield group[0].speaker, samples
            length = sum(clip.samples for clip in group) / spec.sample_rate
            done, had = done + length, had + length
            tell(done / total)

    for split, number in (("valid", 0), *(("train", number) for number in range(count))):
        if number and used() > PREPARING:
            break
        file = work / "tokens" / f"{split}_{number}.safetensors"
        if not file.is_file():
            sources = {"codec": codec_identity, "tokenizer": tokenizer_identity}
            write_tokens(file, spec, recordings(split, number), codec, tokenizer, sources)
