"""Rendering a batch of outputs, chunk by chunk.

Stage 3 pulls what it needs from the stages before it (`language_models/stages.py`). Codes that will not change any more
are decoded, post-filtered and joined to the prompt here. Nothing depends on an output's length but where it ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.audio import postfilter
from audiolm_cli.backend import Backend
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.codec.soundstream import Decoding
from audiolm_cli.console import Clock, Progress, Tell
from audiolm_cli.language_models import candidates, stages
from audiolm_cli.language_models.likelihood import ood_scores
from audiolm_cli.language_models.pauses import PauseLimit
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.request import ContinueRequest, GenerateRequest, SampledRequest
from audiolm_cli.token_file import Tokens

CROSSFADE_SECONDS = 0.02
SCORED_TOKENS = 250  # semantic tokens at a recording's beginning that its out-of-distribution scores are of

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A waveform to continue or to resynthesise; empty for generation from nothing.

    `seed`, `position` in the job list and the number of the `sample` are the key of the random numbers. `seed` replaces
    the request's.
    """

    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    position: int = 0
    sample: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Chunk:
    """The next piece of an output: waveform `float32 [T]`, semantic tokens `int64 [S]` and codes `int64 [Q, F]`. The
    waveform lags behind the tokens."""

    waveform: np.ndarray
    semantic: Tensor
    codes: Tensor


class Stitcher:
    """Post-processes the decoded audio of one output piece by piece: cuts it off after `length` samples, filters it.

    Its first `repeated` samples are the prompt's end, decoded again. They are dropped except the last `fade`, which are
    crossfaded with the prompt's own last `fade` samples. The caller writes the prompt without those.
    """

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
    """Crossfades two waveforms `float32 [T]`: with equal power, or with equal amplitude where that would clip."""
    angle = (np.arange(len(before), dtype=np.float32) + 0.5) / len(before) * np.float32(np.pi / 2)
    out, in_ = np.cos(angle), np.sin(angle)
    mixed = before * out + after * in_
    if np.abs(mixed).max(initial=0) > 1:
        mixed = before * out**2 + after * in_**2
    return mixed.astype(np.float32)


@dataclass
class Run:
    """A batch on its way through the stages."""

    bundle: Any  # a `Bundle`, or what the `Run` of another kind takes
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
        self.about: list[dict[str, Any]] = [{} for _ in self.prompts]  # fields of `Output` beside waveform and tokens

    def once(self, work: Callable[[int], T]) -> list[T]:
        """`work` of every prompt's number; samples of one prompt share the result."""
        made = {n: work(n) for n in dict.fromkeys(self.first)}
        return [made[n] for n in self.first]

    def encode(self, recordings: Sequence[np.ndarray]) -> list[Tokens]:
        """Encodes the prompts' recordings, `float32 [T]` each, after a high-pass filter if they rumble: the stages
        would continue the rumble, ever louder."""
        spec, corner = self.bundle.config.tokens, self.bundle.config.output.high_pass
        total = sum(-(-len(recordings[n]) // spec.samples_per_semantic) for n in set(self.first))
        tell = self.clock.counted("tokenize", total)
        with self.clock.timed("tokenize"):
            return self.once(
                lambda n: encoded(self.bundle, postfilter.without_rumble(recordings[n], spec.sample_rate, corner), tell)
            )

    def score_prompts(self, recordings: Sequence[np.ndarray], tokens: Sequence[Tokens]) -> None:
        """Scores how far the prompts are out of distribution, by stages 1 and 2: `Output.surprise`, `.unfamiliar`. The
        time counts as `tokenize`."""
        with self.clock.timed("tokenize"):
            found = self.once(lambda n: _out_of_distribution(self.bundle, recordings[n], tokens[n]))
        for about, (surprise, why) in zip(self.about, found, strict=True):
            about.update(surprise=surprise, unfamiliar=why)

    def _context(self, stage: str, count: float) -> stages.StageContext:
        tell, timed = self.clock.counted(stage, count), functools.partial(self.clock.timed, stage)
        return stages.StageContext(self.noise, self.sampling.stage(stage), self.batch_size, tell, timed)

    def extended(
        self, known: Sequence[Tokens], new_tokens: float, resampled: int = 0
    ) -> Iterator[tuple[int, Chunk, bool]]:
        """Known tokens and `new_tokens` more semantic tokens, the last `resampled` known ones sampled again: the number
        of an output, its next chunk, and whether that is the last."""
        request = cast(ContinueRequest | GenerateRequest, self.request)
        counts = [len(tokens.semantic) for tokens in known]
        kept = [tokens.semantic[: max(0, count - resampled)] for tokens, count in zip(known, counts, strict=True)]
        least = [count + 1 for count in counts] if request.until_end else None
        totals = [count + new_tokens for count in counts]
        semantic = self.semantic(kept, totals, getattr(request, "best_of", 1), least)
        return self.rendered(semantic, [tokens.codes for tokens in known])

    def semantic(
        self, known: list[Tensor], totals: list[float], best_of: int = 1, least: list[int] | None = None
    ) -> stages.SemanticStage:
        """Stage 1: continues semantic tokens `int64 [S_known]` up to `totals`, from the best of `best_of` candidates.
        With `least`, an output may end by itself once it has so many tokens."""
        model, count = self.bundle.semantic, sum(totals) - sum(map(len, known))
        if best_of > 1:
            ends = [candidates.first_window(model, len(k), total)[2] for k, total in zip(known, totals, strict=True)]
            count += (best_of - 1) * (sum(ends) - sum(map(len, known)))
        context = replace(self._context("semantic", count), pauses=self._longest_pause())
        if best_of > 1:
            with context.timed():
                known, taken, scores = candidates.best(model, known, totals, context, best_of)
            for n, (about, found) in enumerate(zip(self.about, scores, strict=True)):
                about["candidates"] = tuple(found)
                self.noise[n] = Noise(**{**vars(self.noise[n]), "candidate": taken[n]})
        if least:
            with context.timed():
                known = stages.whole(stages.SemanticStage(model, known, least, context))
        return stages.SemanticStage(model, known, totals, context, until_end=least is not None)

    def _longest_pause(self) -> PauseLimit | None:
        config, seconds = self.bundle.config, self.request.pause_limit(self.bundle.config)
        return None if seconds == math.inf else PauseLimit.of(config.pause_tokens, seconds, config.tokens.semantic_rate)

    def rendered(
        self,
        semantic: stages.TokenSource,
        known: list[Tensor] | None = None,
        reference: Tokens | None = None,
        guide_weights: Sequence[float] = (),
    ) -> Iterator[tuple[int, Chunk, bool]]:
        """Stages 2 and 3 and the decoder: the number of an output, its next chunk, and whether that is the last.

        known: a prompt's codes `int64 [Q, F_known]` (default: none), which the first chunk renders. reference: tokens
        of the voice to take. guide_weights: see `CoarseStage`; by default the bundle's.
        """
        bundle, spec = self.bundle, self.bundle.config.tokens
        known = known or [torch.zeros(spec.quantizers, 0, dtype=torch.int64)] * len(semantic.buffers)
        limits = [semantic.limit(n) * spec.frames_per_semantic for n in range(len(known))]
        count = sum(limits) - sum(codes.shape[1] for codes in known)
        voice = (reference.semantic, reference.codes[: spec.coarse]) if reference else None
        context, prefixes = self._context("coarse", count * spec.coarse), [k[: spec.coarse] for k in known]
        weights = tuple(guide_weights or bundle.config.guide_weights)
        context = replace(context, sampling=replace(context.sampling, guide_weights=weights))
        coarse = stages.CoarseStage(bundle.coarse, semantic, prefixes, context, voice, bundle.config.reference_gap)
        if bundle.fine is not None:
            context = self._context("fine", count * spec.fine)
        made_of = bundle.config.sampled_quantizers
        fine = stages.FineStage(bundle.fine, coarse, [k[:made_of] for k in known], spec, context)
        tell, passed = self.clock.counted("decode", sum(limits)), [0] * len(known)
        for buffer in semantic.buffers:
            buffer.release("output", 0)

        def decoded(decoding: Decoding, codes: Tensor) -> Iterator[np.ndarray]:
            pieces = decoding.push(codes[None].to(bundle.device), tell)
            while True:
                with self.clock.timed("decode"):
                    if (piece := next(pieces, None)) is None:
                        return
                    samples: np.ndarray = piece[0].cpu().numpy()
                yield samples

        def chunks(n: int, codes: Tensor, sounds: Iterator[np.ndarray]) -> Iterator[Chunk]:
            """A chunk for each decoded piece; the first one has the tokens."""
            end = min(len(semantic.buffers[n]), -(-len(fine.buffers[n]) // spec.frames_per_semantic))
            tokens, passed[n] = semantic.buffers[n].slice(passed[n], end), end
            semantic.buffers[n].release("output", end)
            for sound in sounds:
                yield Chunk(sound, tokens, codes)
                tokens, codes = tokens[:0], codes[:, :0]

        decodings = self.once(lambda n: Decoding(bundle.codec))
        beginnings = self.once(lambda n: list(decoded(decodings[n], known[n])))
        for n, codes in enumerate(known):
            decodings[n] = decodings[n].copy()
            if self.first[n] != n:
                tell(codes.shape[1])
            for chunk in chunks(n, codes[:made_of], iter(beginnings[n])):
                yield n, chunk, False
        while made := fine.advance():
            for n, codes in made.items():
                last = n not in fine.next
                for chunk in chunks(n, codes, decoded(decodings[n], codes)):
                    yield n, chunk, False
                if last:
                    rest = decodings[n].finish()[0].cpu().numpy()
                    yield n, Chunk(rest, semantic.buffers[n].slice(passed[n], passed[n]), codes[:, :0]), True

    def acoustic(self, semantic: list[Tensor], known: list[Tensor]) -> list[np.ndarray]:
        """Renders semantic tokens `int64 [S]` behind known codes: the waveforms as decoded, known part included."""
        found: list[list[np.ndarray]] = [[] for _ in semantic]
        for n, chunk, _ in self.rendered(stages.TokenSource(semantic), known):
            found[n].append(chunk.waveform)
        return [np.concatenate(parts) for parts in found]


@functools.singledispatch
def run_for(bundle: object) -> type[Run]:
    """The `Run` of a kind of model: three stages unless another is registered."""
    return Run


def encoded(bundle: Backend, waveform: np.ndarray, tell: Tell | None = None) -> Tokens:
    """Encodes a recording into tokens, with the metadata of a token file."""
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


def _out_of_distribution(bundle: Bundle, recording: np.ndarray, tokens: Tokens) -> tuple[float | None, str]:
    """A recording's `surprise`, None for a bundle without a threshold, and why it is out of distribution, if it is."""
    config, found = bundle.config, None
    if config.familiar_bits:
        found = ood_scores(bundle.semantic, bundle.coarse, tokens.semantic[:SCORED_TOKENS], tokens.codes)
    cut = postfilter.overload(recording)
    why = ""
    if postfilter.silent(recording, config.tokens.sample_rate):
        why = "it is silent"
    elif cut > postfilter.CLIPPED:
        why = f"{cut:.0%} of it is cut off at its peak"
    elif found and found.surprise > config.familiar_bits:
        why = f"{found.surprise:.1f} bits a token, mostly under {config.familiar_bits:.1f}"
    elif found and found.semantic < config.familiar_semantic_bits:
        why = f"{found.semantic:.1f} bits a semantic token, mostly over {config.familiar_semantic_bits:.1f}"
    return found.surprise if found else None, why
