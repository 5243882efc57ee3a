"""Bits per token of a bundle's three stages on held-out recordings, beside unigram and bigram models.

All figures use the same crops; intervals are by bootstrap over speakers. For stage 2 also: how much the right semantic
tokens help, compared with those of another speaker's crop, and how much a reference of the same speaker helps, compared
with another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.corpora.tokenize import TokenData, Track, groups, joined, read_tokens, write_tokens
from audiolm_cli.training.measures.measures import Figure, figure
from audiolm_cli.training.measures.ngrams import ngram_bits
from audiolm_cli.training.parts.lm import Crops, Shape

CROPS = {"semantic": Shape(0, 10), "coarse": Shape(0, 10), "fine": Shape(0, 3)}  # seconds, without a reference
EFFECTS = Shape(3, 4)  # seconds of reference and of crop


def bundle_tokens(bundle: Bundle, corpus: Corpus, split: str, cache: Path, hours: float | None = None) -> TokenData:
    """A split as tokens of this bundle, recordings of a speaker joined as in training; at most `hours` of it.

    Cached in `cache`, under a name with the identities of the codec and the tokenizer. The whole training split is that
    of `tokenize`, if its files lie in `cache/../tokens`.
    """
    depends = bundle.config.depends
    sources = {part: depends[part]["self"] for part in ("codec", "tokenizer")}
    amount = "all" if hours is None else f"{hours:g}h"
    file = cache / f"{split}-{amount}-{sources['codec'][:12]}-{sources['tokenizer'][:12]}.safetensors"
    if not file.is_file():
        if split == "train" and hours is None and (found := _unaltered(cache.parent, sources)):
            return found
        recordings = _recordings(bundle, corpus, hours)
        write_tokens(file, bundle.config.tokens, recordings, bundle.codec, bundle.tokenizer, sources)
    return read_tokens(file)


def _unaltered(runs: Path, sources: dict[str, str]) -> TokenData | None:
    """The unaltered pass over the training split that `tokenize` made with these models, if all of it is there."""
    files = sorted((runs / "tokens").glob("train_0*.safetensors"))
    shares = sorted(f"train_0_{n}of{len(files)}" for n in range(len(files)))  # of torchrun's processes
    if not files or [file.stem for file in files] not in (["train_0"], shares):
        return None
    parts = [read_tokens(file) for file in files]
    if any(part.sources != sources for part in parts):
        return None
    tracks: list[Track] = []
    offset = 0
    for part in parts:
        for track in part.tracks:
            tracks.append(Track(track.speaker.rpartition("/")[0], offset + track.offset, track.length))
        offset += len(part.semantic)
    semantic, codes = torch.cat([part.semantic for part in parts]), torch.cat([part.codes for part in parts], 1)
    return TokenData(parts[0].spec, semantic, codes, tracks, sources)


def _recordings(bundle: Bundle, corpus: Corpus, hours: float | None) -> Iterator[tuple[str, np.ndarray]]:
    """Speaker and samples of the joined recordings, in random order, until there are `hours` of tokens."""
    spec, rng, tokens = bundle.config.tokens, np.random.default_rng(0), 0
    chosen = groups(corpus, spec.sample_rate)
    for index in rng.permutation(len(chosen)):
        if hours is not None and tokens > hours * 3600 * spec.semantic_rate:
            return
        samples = joined(corpus, chosen[index], spec.sample_rate, rng)
        tokens += len(samples) // spec.samples_per_semantic
        yield chosen[index][0].speaker, samples


def stage_bits(bundle: Bundle, validation: TokenData, training: TokenData, crops: int = 96) -> dict[str, dict]:
    """For each stage and quantizer: `model` (with interval), `unigram` and `bigram`, in bits per token.

    Rows are named `semantic`, `coarse 0`, ..., `fine 4`, ...; `bigram` is the better of the two of `ngrams`.
    """
    rows: dict[str, dict] = {}
    for stage, model in bundle.stages.items():
        drawn = _drawn(model, [validation], CROPS[stage], crops)
        spec, length = validation.spec, round(CROPS[stage].crop * validation.spec.semantic_rate)
        losses = _losses(model, [validation], drawn, CROPS[stage])
        speakers = [track.speaker for _, track, _, _ in drawn]
        pieces = [validation.cut(track, first, length) for _, track, first, _ in drawn]
        whole = [training.cut(track, 0, track.length) for track in training.tracks]
        if stage == "semantic":
            names, size = ["semantic"], spec.semantic_vocabulary
            tables = ngram_bits([s[None].numpy() for s, _ in whole], [s[None].numpy() for s, _ in pieces], size)
        else:
            first, last = (0, spec.coarse) if stage == "coarse" else (spec.coarse, spec.quantizers)
            names = [f"{stage} {q}" for q in range(first, last)]
            seen, unseen = ([c[:last].numpy() for _, c in part] for part in (whole, pieces))
            tables = ngram_bits(seen, unseen, spec.codebook_size, coarse=spec.coarse, first=first)
        for q, (name, table) in enumerate(zip(names, tables, strict=True)):
            model_bits = figure(zip(speakers, losses[:, q], strict=True))
            rows[name] = {"model": model_bits, "unigram": table.unigram, "bigram": table.bigram}
    return rows


def semantic_bits(bundle: Bundle, data: Sequence[TokenData], crops: int = 96, by_track: bool = False) -> Figure:
    """Stage 1's bits per token on crops of any of the data, which may have no codes. The interval is by bootstrap over
    speakers or, if `by_track`, over tracks, for data of one speaker."""
    drawn = _drawn(bundle.semantic, data, CROPS["semantic"], crops)
    losses = _losses(bundle.semantic, data, drawn, CROPS["semantic"])[:, 0]
    names = [f"{track.speaker}/{track.offset}" if by_track else track.speaker for _, track, _, _ in drawn]
    return figure(zip(names, losses, strict=True))


def synthetic_tokens(bundle: Bundle, runs: Path, split: str) -> list[TokenData]:
    """The synthetic speech that stage 1 was trained on (`train`) or not (`valid`), as tokens of this bundle, from
    `tokenize`'s files in `runs`. Empty if there are none."""
    name = {"train": "synthetic", "valid": "synthetic-valid"}[split]
    found = [read_tokens(file) for file in sorted((runs / "tokens").glob(f"{name}_*.safetensors"))]
    return [data for data in found if data.sources == {"tokenizer": bundle.config.depends["tokenizer"]["self"]}]


def conditioning_effects(bundle: Bundle, validation: TokenData, crops: int = 96) -> dict[str, Figure]:
    """Stage 2's bits per token after a reference, and their rise if part of the input is another speaker's.

    `own`: with everything in place; `other semantics`, `other reference`: the rise, with its interval.
    """
    model = bundle.coarse
    drawn = _pairs(_drawn(model, [validation], EFFECTS, crops))
    speakers = [track.speaker for _, track, _, _ in drawn]
    own = _losses(model, [validation], drawn, EFFECTS, pairs=True).mean(1)
    rise = {
        name: _losses(model, [validation], drawn, EFFECTS, pairs=True, **change).mean(1) - own
        for name, change in (("other semantics", {"shuffled": True}), ("other reference", {"others": True}))
    }
    return {name: figure(zip(speakers, values, strict=True)) for name, values in {"own": own, **rise}.items()}


def _drawn(model: Stack, data: Sequence[TokenData], shape: Shape, count: int) -> list:
    drawn = Crops(list(data), model, seed=1).draw(shape, count)
    if not drawn:
        raise ValueError(f"no validation recording is {shape.reference + shape.crop:g} s long")
    return drawn


def _pairs(drawn: list) -> list:
    """Crops ordered so that numbers 2n and 2n + 1 have different speakers; unpaired ones are dropped."""
    ordered = sorted(drawn, key=lambda crop: crop[1].speaker)
    half = len(ordered) // 2
    pairs = [
        pair for pair in zip(ordered[:half], ordered[half:], strict=False) if pair[0][1].speaker != pair[1][1].speaker
    ]
    return [crop for pair in pairs for crop in pair]


@torch.inference_mode()
def _losses(
    model: Stack,
    data: Sequence[TokenData],
    drawn: list,
    shape: Shape,
    pairs: bool = False,
    **change: bool,
) -> np.ndarray:
    """Mean bits per token of every crop and quantizer, `[crops, quantizers]` (1 quantizer in stage 1)."""
    crops = Crops(list(data), model, seed=1)
    device, size, parts = next(model.parameters()).device, 2 if pairs else 8, []
    for start in range(0, len(drawn), size):
        losses = model.token_losses(crops.build(drawn[start : start + size], shape, **change).to(device))
        parts.append(losses.float().mean(1).cpu().numpy())
    return np.concatenate(parts) / np.log(2)
