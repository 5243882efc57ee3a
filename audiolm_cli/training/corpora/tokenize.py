"""Turns the corpus into tokens for the language models: one pass unaltered, further passes with altered voices.

    python -m audiolm_cli.training.corpora.tokenize --data DATA --passes 2

Under torchrun, each process takes its share of the recordings. Recordings of --synthetic FOLDER get semantic tokens
only, for stage 1, with other rooms and microphones (`augmentation`), so that real and synthetic speech sound alike.

Needs parts/codec.safetensors and parts/tokenizer.safetensors. Passes after the first shift each recording by a part of
a frame and change its level, channel and rate (0.85 to 1.18: pitch and tempo together, which changes the speaker).
Short recordings of one speaker are joined in order, separated by a little of their own room tone. Existing passes are
kept; of those made with another tokenizer, only the codes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from audiolm_cli.audio import files
from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import TOKEN_SOURCES, read_about, read_tensors, tensors_identity, write_tensors
from audiolm_cli.codec.autoencoders import State
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import TokenizerConfig, TokenSpec, codec_config
from audiolm_cli.errors import ModelError
from audiolm_cli.fields import from_json
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.corpora.augmentation import Changes, changed, equaliser
from audiolm_cli.training.corpora.data import Clip, Corpus, load_corpus, read_manifest
from audiolm_cli.training.trainer import arguments, autocast

TRACK_SECONDS = 24.0  # recordings of a speaker are joined up to about this length
SHARD = 200  # synthetic recordings in a file, about two hours
SYNTHETIC = Changes(rate=(0.88, 1.14), rate_chance=0.4, noise=(10.0, 45.0), noise_chance=0.8)  # as real ones differ


@dataclass(frozen=True)
class Track:
    """A stretch of one speaker: `length` semantic tokens at `offset` in the token arrays."""

    speaker: str
    offset: int
    length: int


@dataclass(frozen=True)
class TokenData:
    """One pass over a split: semantic `int64 [N]`, codes `int64 [Q, N * frames_per_semantic]` (of synthetic speech
    `[Q, 0]`), and the tracks."""

    spec: TokenSpec
    semantic: Tensor
    codes: Tensor
    tracks: list[Track]
    sources: dict[str, str]  # identities of the codec and the tokenizer

    def cut(self, track: Track, first: int, length: int) -> tuple[Tensor, Tensor]:
        """Semantic tokens `[length]` and codes `[Q, frames]` of a part of a track."""
        start, per = track.offset + first, self.spec.frames_per_semantic
        return self.semantic[start : start + length], self.codes[:, start * per : (start + length) * per]


def load_part(runs: Path, part: str) -> tuple[SoundStream | SemanticTokenizer, str]:
    """The frozen codec or tokenizer of a run, and its identity."""
    file = runs / "parts" / f"{part}.safetensors"
    about = read_about(file)
    spec = from_json(TokenSpec, about["tokens"], "tokens")
    module: SoundStream | SemanticTokenizer
    if part == "codec":
        module = SoundStream(codec_config(about["config"]), spec)
    else:
        module = SemanticTokenizer(from_json(TokenizerConfig, about["config"], part), spec)
    tensors = read_tensors(file, module.state_dict())
    module.load_state_dict({k: v.float() for k, v in int8.restored(tensors).items()})
    return module.eval().requires_grad_(False), tensors_identity(tensors, TOKEN_SOURCES[part])


def vocabulary_of(runs: Path) -> int:
    """The vocabulary size of a run's tokenizer."""
    about = read_about(runs / "parts" / "tokenizer.safetensors")
    spec: TokenSpec = from_json(TokenSpec, about["tokens"], "tokens")
    return spec.semantic_vocabulary


def groups(corpus: Corpus, rate: int) -> list[list[Clip]]:
    """Groups the clips of each speaker, in the order of their names, into tracks of up to TRACK_SECONDS."""
    result: list[list[Clip]] = []
    for clip in sorted(corpus.clips, key=lambda c: (c.speaker, c.path)):
        last = result[-1] if result else []
        if last and last[0].speaker == clip.speaker and sum(c.samples for c in [*last, clip]) < TRACK_SECONDS * rate:
            last.append(clip)
        else:
            result.append([clip])
    return result


def joined(corpus: Corpus, clips: list[Clip], rate: int, rng: np.random.Generator) -> np.ndarray:
    """Joins clips, each followed by 0.2 to 0.4 s of its own quietest stretch."""
    parts = []
    for n, clip in enumerate(clips):
        samples = corpus.samples(clip)
        parts.append(samples)
        tone = int(rng.uniform(0.2, 0.4) * rate)
        if n + 1 < len(clips) and len(samples) > 2 * tone:
            starts = np.arange(0, len(samples) - tone, tone // 4)
            quietest = min(starts, key=lambda s: float(np.square(samples[s : s + tone]).sum()))
            parts.append(samples[quietest : quietest + tone])
    return np.concatenate(parts)


def altered(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes rate, level and channel of a recording at random."""
    factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.18))))
    spectrum = np.fft.rfft(samples, len(samples))
    size = int(len(samples) / factor) // 2 * 2
    bins = size // 2 + 1
    spectrum = np.pad(spectrum, (0, max(0, bins - len(spectrum))))[:bins]
    gain = 10 ** (equaliser(bins, rng, 2.5) / 20)
    out = np.fft.irfft(spectrum * gain, size) * (size / len(samples)) * 10 ** (rng.uniform(-6, 6) / 20)
    return np.clip(out, -1, 1).astype(np.float32)


def tokenize(args: argparse.Namespace, file: Path, split: str, number: int, share: tuple[int, int]) -> None:
    """Writes pass `number` over a split unless it exists; with `share` (i, n), only every n-th group of recordings,
    from the i-th on."""
    parts = (load_part(args.runs, part) for part in ("codec", "tokenizer"))
    (codec, codec_identity), (tokenizer, tokenizer_identity) = parts
    sources = {"codec": codec_identity, "tokenizer": tokenizer_identity}
    before = read_tokens(file) if file.is_file() else None
    if before and before.sources == sources:
        return
    assert isinstance(codec, SoundStream)
    assert isinstance(tokenizer, SemanticTokenizer)
    codec.to(args.device), tokenizer.to(args.device)
    quantizers, codebook_size, _ = codec.quantizer.codebooks.shape
    spec = TokenSpec(quantizers=quantizers, codebook_size=codebook_size, semantic_vocabulary=vocabulary_of(args.runs))
    rng = np.random.default_rng(number)
    corpus = load_corpus(args.data, split, spec.sample_rate, args.runs / "audio")

    def recordings() -> Iterator[tuple[str, np.ndarray]]:
        for clips in groups(corpus, spec.sample_rate)[share[0] :: share[1]]:
            samples = joined(corpus, clips, spec.sample_rate, rng)
            samples = samples[rng.integers(0, spec.samples_per_frame) :] if number else samples
            yield f"{clips[0].speaker}/{number}", altered(samples, rng) if number else samples

    codes = before.codes if before and before.sources["codec"] == codec_identity else None
    write_tokens(file, spec, recordings(), codec, tokenizer, sources, codes)
    print(json.dumps({"written": str(file)}), flush=True)


@torch.inference_mode()
def tokenize_synthetic(args: argparse.Namespace, split: str, number: int, share: tuple[int, int]) -> None:
    """Writes pass `number` over a split of synthetic recordings, in files of SHARD recordings; keeps existing files."""
    tokenizer, identity = load_part(args.runs, "tokenizer")
    assert isinstance(tokenizer, SemanticTokenizer)
    tokenizer.to(args.device)
    spec = dataclasses.replace(TokenSpec(), semantic_vocabulary=vocabulary_of(args.runs))
    rows = read_manifest(args.synthetic, split, args.hours)
    for shard in range(share[0], -(-len(rows) // SHARD), share[1]):
        file = synthetic_file(args.runs, split, number, shard)
        if is_of_tokenizer(file, identity):
            continue
        made = []
        rng = np.random.default_rng((number, shard))
        for row in rows[shard * SHARD : (shard + 1) * SHARD]:
            samples = files.read(args.synthetic / row["path"], spec.sample_rate).samples
            if split == "train":
                samples, _ = changed(samples, rng, SYNTHETIC)
            with autocast(torch.device(args.device)):  # changes 0.9 % of the tokens on a CPU
                ids = tokenizer.tokenize(torch.from_numpy(samples).to(args.device)[None])[0].short().cpu()
            made.append((f"{row['speaker']}/{number}", ids))
        save_semantic(file, spec, made, identity)


def synthetic_file(runs: Path, split: str, number: int, shard: int = 0) -> Path:
    """Where a part of pass `number` over a split is kept whose recordings have semantic tokens alone."""
    name = "synthetic" if split == "train" else "synthetic-valid"
    return runs / "tokens" / f"{name}_{number}_{shard:04}.safetensors"


def is_of_tokenizer(file: Path, identity: str) -> bool:
    """Whether there is a file of `save_semantic` that this tokenizer made."""
    return file.is_file() and read_tokens(file).sources == {"tokenizer": identity}


def save_semantic(file: Path, spec: TokenSpec, made: list[tuple[str, Tensor]], identity: str) -> None:
    """Writes semantic tokens `int16 [S]` alone, of recordings with their speakers, to the file that `read_tokens`
    reads."""
    ends = itertools.accumulate(len(ids) for _, ids in made)
    tracks = [asdict(Track(who, end - len(ids), len(ids))) for (who, ids), end in zip(made, ends, strict=True)]
    codes = torch.zeros(spec.quantizers, 0, dtype=torch.int16)
    save_tokens(file, spec, torch.cat([ids for _, ids in made]), codes, tracks, {"tokenizer": identity})


@torch.inference_mode()
def write_tokens(
    file: Path,
    spec: TokenSpec,
    recordings: Iterable[tuple[str, np.ndarray]],  # speaker, float32 [T]
    codec: SoundStream,
    tokenizer: SemanticTokenizer,
    sources: dict[str, str],
    known: Tensor | None = None,
) -> None:
    """Writes the tokens of recordings, one track each, to the file that `read_tokens` reads; drops recordings shorter
    than a token. `known` has the codes of all of them, if they are already known."""
    device, semantic, codes, tracks, offset = next(codec.parameters()).device, [], [], [], 0
    for speaker, samples in recordings:
        length = len(samples) // spec.samples_per_semantic
        if not length:
            continue
        audio = torch.from_numpy(samples[: length * spec.samples_per_semantic]).to(device)[None]
        semantic.append(tokenizer.tokenize(audio)[0].short().cpu())
        if known is None:  # in one piece: faster for short recordings than pieces of 4 s
            codes.append(codec.quantizer.encode(codec.encoder(audio, State()))[0].short().cpu())
        tracks.append(asdict(Track(speaker, offset, length)))
        offset += length
    all_codes = torch.cat(codes, 1) if known is None else known.short()
    if all_codes.shape[1] != offset * spec.frames_per_semantic:
        raise ModelError(f"{file}: made from other recordings; remove it")
    save_tokens(file, spec, torch.cat(semantic), all_codes, tracks, sources)


def save_tokens(
    file: Path, spec: TokenSpec, semantic: Tensor, codes: Tensor, tracks: list[dict], sources: dict[str, str]
) -> None:
    """Writes the file that `read_tokens` reads."""
    metadata = {"tokens": json.dumps(asdict(spec)), "tracks": json.dumps(tracks), "sources": json.dumps(sources)}
    write_tensors(file, {"semantic": semantic, "codes": codes.contiguous()}, metadata)


def read_tokens(file: Path) -> TokenData:
    """Reads a file of `write_tokens`."""
    with safe_open(file, framework="pt") as handle:
        about = handle.metadata()
        tracks = [Track(**track) for track in json.loads(about["tracks"])]
        spec, sources = from_json(TokenSpec, json.loads(about["tokens"]), "tokens"), json.loads(about["sources"])
        semantic, codes = handle.get_tensor("semantic").long(), handle.get_tensor("codes").long()
    return TokenData(spec, semantic, codes, tracks, sources)


def load_tokens(runs: Path, split: str) -> list[TokenData]:
    """All passes over a split. Raises ModelError if there are none, or if they come from different models."""
    result = [read_tokens(file) for file in sorted((runs / "tokens").glob(f"{split}_*.safetensors"))]
    if not result:
        raise ModelError(f"{runs}/tokens: no tokens of the split {split!r}; run audiolm_cli.training.corpora.tokenize")
    if any(data.sources != result[0].sources for data in result):
        raise ModelError(f"{runs}/tokens: made with different codecs or tokenizers; remove the old ones")
    return result


def main() -> None:
    parser = arguments(__doc__, minutes=0)
    parser.add_argument("--passes", type=int, default=2, help="over the training split, the first one unaltered")
    parser.add_argument("--synthetic", type=Path, help="folder of synthetic speech, for semantic tokens only")
    parser.add_argument("--hours", type=float, help="of it; all by default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.synthetic:
        for split, passes in (("valid", 1), ("train", args.passes)):
            for number in range(passes):
                tokenize_synthetic(args, split, number, (index, count))
        return
    wanted = ([("valid", 0, (0, 1))] if index == 0 else []) + [("train", n, (index, count)) for n in range(args.passes)]
    for split, number, share in wanted:
        suffix = f"_{share[0]}of{share[1]}" if share[1] > 1 else ""
        file = args.runs / "tokens" / f"{split}_{number}{suffix}.safetensors"
        tokenize(args, file, split, number, share)


if __name__ == "__main__":
    main()
