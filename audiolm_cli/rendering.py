"""A batch of outputs on its way through the stages, chunk by chunk.

Stage 3 asks for what it needs of the stages before it (`language_models/stages.py`); what it has settled is decoded,
post-filtered and joined to the prompt here. Nothing in it depends on the length of an output but the output's end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.audio import postfilter
from audiolm_cli.backend import Backend
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.codec.soundstream import Decoding
from audiolm_cli.console import Clock, Progress, Tell
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.likelihood import strangeness
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.request import SampledRequest
from audiolm_cli.token_file import Tokens

CROSSFADE_SECONDS = 0.02
OVERLOADED = 0.02  # of a recording's samples at its peak: it was cut off there
SURPRISING = 250  # semantic tokens at the beginning of a recording that tell how strange it is

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A waveform to go on from, or to say again; nothing to generate from.

    `seed`, `position` in the job list and number of the `sample` key the random numbers; without a seed of its own the
    request's counts.
    """

    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    position: int = 0
    sample: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Chunk:
    """What comes next of an output: sound, `float32 [T]`, and tokens, `int64 [S]` and `int64 [Q, F]`, of which the
    sound lags behind."""

    waveform: np.ndarray
    semantic: Tensor
    codes: Tensor


class Shape:
    """Gives decoded sound its length, level and beginning, as it comes: what lies behind `length` samples is cut off,
    the rest goes through the filters, and the first `repeated` samples of that, which render the prompt's end, give way
    to the last `fade` of the prompt as it was, in a crossfade. What comes before these is for the caller."""

    def __init__(
        self, rate: int, filters: postfilter.PostFilter, length: float, prompt: np.ndarray | None = None,
        repeated: int = 0,
    ) -> None:  # fmt: skip
        self.filters, self.left = filters, length
        self.fade = min(round(CROSSFADE_SECONDS * rate), repeated)
        self.skip = repeated - self.fade  # of what comes out of the filters
        self.end = None if prompt is None else prompt[len(prompt) - self.fade :]
        self.waiting = np.zeros(0, np.float32)

    def push(self, audio: np.ndarray) -> np.ndarray:
        audio = audio[: int(min(self.left, len(audio)))]
        self.left -= len(audio)
        return self._joined(self.filters.push(audio))

    def finish(self) -> np.ndarray:
        return self._joined(self.filters.finish())

    def _joined(self, samples: np.ndarray) -> np.ndarray:
        skipped = min(self.skip, len(samples))
        self.skip, samples = self.skip - skipped, samples[skipped:]
        if self.end is None:
            return samples
        samples = self.waiting = np.concatenate([self.waiting, samples])
        if len(samples) < len(self.end):
            return samples[:0]
        count, mixed = len(self.end), crossfade(self.end, samples[: len(self.end)])
        self.end = None
        return np.concatenate([mixed, samples[count:]])


def crossfade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """From one sound to another of the same length, `float32 [T]`: of equal power, or where that would be louder than
    full scale of equal amplitude."""
    angle = (np.arange(len(before), dtype=np.float32) + 0.5) / len(before) * np.float32(np.pi / 2)
    out, in_ = np.cos(angle), np.sin(angle)
    mixed = before * out + after * in_
    if np.abs(mixed).max(initial=0) > 1:
        mixed = before * out**2 + after * in_**2
    return mixed.astype(np.float32)


@dataclass
class Run:
    """A batch on its way through the stages."""

    bundle: Any  # a `Bundle`; of other kinds what their own run takes
    request: SampledRequest
    prompts: Sequence[Prompt]
    batch_size: int  # engine batches are padded to it: results do not depend on how many prompts there are
    progress: Progress | None = None

    def __post_init__(self) -> None:
        seeds = [self.request.seed if prompt.seed is None else prompt.seed for prompt in self.prompts]
        self.noise = [Noise(s, p.position, p.sample) for s, p in zip(seeds, self.prompts, strict=True)]
        self.sampling = self.request.sampling(self.bundle.config.sampling)
        self.clock = Clock(self.progress)
        waveforms = [prompt.waveform for prompt in self.prompts]
        self.first = [next(n for n, other in enumerate(waveforms) if other is own) for own in waveforms]
        self.about: list[dict[str, Any]] = [{} for _ in self.prompts]  # what `Output` says beside sound and tokens

    def once(self, work: Callable[[int], T]) -> list[T]:
        """The results for all prompts; samples of one prompt share theirs."""
        made = {n: work(n) for n in dict.fromkeys(self.first)}
        return [made[n] for n in self.first]

    def encode(self, recordings: Sequence[np.ndarray]) -> list[Tokens]:
        """Encodes the prompts' recordings, `float32 [T]` each, without their rumble: the stages would continue it, ever
        louder."""
        spec, corner = self.bundle.config.tokens, self.bundle.config.output.high_pass
        total = sum(-(-len(recordings[n]) // spec.samples_per_semantic) for n in set(self.first))
        tell = self.clock.counted("tokenize", total)
        with self.clock.timed("tokenize"):
            return self.once(
                lambda n: encoded(self.bundle, postfilter.without_rumble(recordings[n], spec.sample_rate, corner), tell)
            )

    def strangeness(self, recordings: Sequence[np.ndarray], tokens: Sequence[Tokens]) -> None:
        """How strange the prompts' recordings and their tokens are to the bundle: `Output.surprise` and `.unfamiliar`.
        Stages 1 and 2 score them, in the time of `tokenize`."""
        with self.clock.timed("tokenize"):
            found = self.once(lambda n: _strange(self.bundle, recordings[n], tokens[n]))
        for about, (surprise, why) in zip(self.about, found, strict=True):
            about.update(surprise=surprise, unfamiliar=why)

    def _how(self, stage: str, count: float) -> stages.How:
        tell, timed = self.clock.counted(stage, count), functools.partial(self.clock.timed, stage)
        return stages.How(self.noise, self.sampling.stage(stage), self.batch_size, tell, timed)

    def extended(
        self, known: Sequence[Tokens], new_tokens: float, resampled: int = 0
    ) -> Iterator[tuple[int, Chunk, bool]]:
        """Known tokens and so many semantic tokens more, the last `resampled` known ones made again: chunks of each
        output as they are made, and whether that is its last."""
        request: Any = self.request
        counts = [len(tokens.semantic) for tokens in known]
        kept = [tokens.semantic[: max(0, count - resampled)] for tokens, count in zip(known, counts, strict=True)]
        least = [count + 1 for count in counts] if request.until_end else None
        totals = [count + new_tokens for count in counts]
        semantic = self.semantic(kept, totals, getattr(request, "best_of", 1), least)
        return self.rendered(semantic, [tokens.codes for tokens in known])

    def semantic(
        self, known: list[Tensor], totals: list[float], best_of: int = 1, least: list[int] | None = None
    ) -> stages.SemanticStage:
        """Stage 1: continues semantic tokens, `int64 [S_known]`, up to `totals`. Of `best_of` candidates the best goes
        on. With `least`, what is made may end by itself once it has so many tokens."""
        model, count = self.bundle.semantic, sum(totals) - sum(map(len, known))
        if best_of > 1:
            ends = [stages.first_window(model, len(k), total)[2] for k, total in zip(known, totals, strict=True)]
            count += (best_of - 1) * (sum(ends) - sum(map(len, known)))
        how = self._how("semantic", count)
        if best_of > 1:
            with how.timed():
                known, taken, scores = stages.best_semantic(model, known, totals, how, best_of)
            for n, (about, found) in enumerate(zip(self.about, scores, strict=True)):
                about["candidates"] = tuple(found)
                self.noise[n] = Noise(**{**vars(self.noise[n]), "candidate": taken[n]})
        if least:
            with how.timed():
                known = stages.whole(stages.SemanticStage(model, known, least, how))
        return stages.SemanticStage(model, known, totals, how, until_end=least is not None)

    def rendered(
        self,
        semantic: stages.Source,
        known: list[Tensor] | None = None,
        reference: Tokens | None = None,
        faithful: bool = False,
    ) -> Iterator[tuple[int, Chunk, bool]]:
        """Stages 2 and 3 and the decoder: chunks of each output as they are made, and whether that is its last.

        known: a prompt's codes `int64 [Q, F_known]` (default: none), which the first chunk renders. reference: tokens
        of the voice to be had. faithful: guidance holds on to the semantic tokens, too, since they are what was asked
        for.
        """
        bundle, spec = self.bundle, self.bundle.config.tokens
        known = known or [torch.zeros(spec.quantizers, 0, dtype=torch.int64)] * len(semantic.lines)
        limits = [semantic.limit(n) * spec.frames_per_semantic for n in range(len(known))]
        count = sum(limits) - sum(codes.shape[1] for codes in known)
        voice = (reference.semantic, reference.codes[: spec.coarse]) if reference else None
        how, prefixes = self._how("coarse", count * spec.coarse), [k[: spec.coarse] for k in known]
        coarse = stages.CoarseStage(bundle.coarse, semantic, prefixes, how, voice, faithful)
        if bundle.fine is not None:
            how = self._how("fine", count * spec.fine)
        fine = stages.FineStage(bundle.fine, coarse, known, spec, how)
        tell, said = self.clock.counted("decode", sum(limits)), [0] * len(known)
        for line in semantic.lines:
            line.hold("output", 0)

        def decoded(decoding: Decoding, codes: Tensor) -> Iterator[np.ndarray]:
            pieces = decoding.push(codes[None].to(bundle.device), tell)
            while True:
                with self.clock.timed("decode"):
                    if (piece := next(pieces, None)) is None:
                        return
                    samples: np.ndarray = piece[0].cpu().numpy()
                yield samples

        def chunks(n: int, codes: Tensor, sounds: Iterator[np.ndarray]) -> Iterator[Chunk]:
            """A chunk for each piece of sound, the tokens with the first."""
            end = min(len(semantic.lines[n]), -(-len(fine.lines[n]) // spec.frames_per_semantic))
            tokens, said[n] = semantic.lines[n].cut(said[n], end), end
            semantic.lines[n].hold("output", end)
            for sound in sounds:
                yield Chunk(sound, tokens, codes)
                tokens, codes = tokens[:0], codes[:, :0]

        decodings = self.once(lambda n: Decoding(bundle.codec))
        beginnings = self.once(lambda n: list(decoded(decodings[n], known[n])))
        for n, codes in enumerate(known):
            decodings[n] = decodings[n].copy()
            if self.first[n] != n:
                tell(codes.shape[1])
            for chunk in chunks(n, codes, iter(beginnings[n])):
                yield n, chunk, False
        while made := fine.advance():
            for n, codes in made.items():
                last = n not in fine.next
                for chunk in chunks(n, codes, decoded(decodings[n], codes)):
                    yield n, chunk, False
                if last:
                    rest = decodings[n].finish()[0].cpu().numpy()
                    yield n, Chunk(rest, semantic.lines[n].cut(said[n], said[n]), codes[:, :0]), True

    def acoustic(self, semantic: list[Tensor], known: list[Tensor]) -> list[np.ndarray]:
        """Renders semantic tokens `int64 [S]` behind known codes: sound as it is decoded, from these on."""
        found: list[list[np.ndarray]] = [[] for _ in semantic]
        for n, chunk, _ in self.rendered(stages.Source(semantic), known):
            found[n].append(chunk.waveform)
        return [np.concatenate(parts) for parts in found]


@functools.singledispatch
def run_for(bundle: object) -> type[Run]:
    """How a batch goes through a model of that kind: through three stages, where no other is registered."""
    return Run


def encoded(bundle: Backend, waveform: np.ndarray, tell: Tell | None = None) -> Tokens:
    """A recording's tokens, with what a file of them says about it."""
    spec = bundle.config.tokens
    metadata = {
        "format": "audiolm-tokens",
        "bundle": bundle.config.name,
        "codec": bundle.config.depends["codec"]["self"],
        "tokenizer": bundle.config.depends["tokenizer"]["self"],
        "sample_rate": str(spec.sample_rate),
        "samples": str(len(waveform)),
        "frame_rate": f"{spec.sample_rate / spec.samples_per_frame:g}",
        "semantic_rate": f"{spec.semantic_rate:g}",
    }
    return Tokens(*bundle.tokenize(waveform, tell), metadata)


def _strange(bundle: Bundle, recording: np.ndarray, tokens: Tokens) -> tuple[float | None, str]:
    """The surprise of a recording where the bundle says what is strange, and why it is unlike what the bundle knows."""
    config, found = bundle.config, None
    if config.familiar_bits:
        found = strangeness(bundle.semantic, bundle.coarse, tokens.semantic[:SURPRISING], tokens.codes)
    cut = postfilter.overload(recording)
    why = ""
    if postfilter.silent(recording, config.tokens.sample_rate):
        why = "it is silent"
    elif cut > OVERLOADED:
        why = f"{cut:.0%} of it is cut off at its peak"
    elif found and found.surprise > config.familiar_bits:
        why = f"{found.surprise:.1f} bits a token, mostly under {config.familiar_bits:.1f}"
    elif found and found.semantic < config.familiar_semantic_bits:
        why = f"{found.semantic:.1f} bits a semantic token, mostly over {config.familiar_semantic_bits:.1f}"
    return found.surprise if found else None, why
