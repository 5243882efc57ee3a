"""AudioLM from end to end: start reading here.

    prompt --semantic tokenizer--> semantic tokens --stage 1--> more semantic tokens
           --SoundStream encoder--> coarse codes   --stage 2--> more coarse codes  (reads the semantic tokens)
                                                   --stage 3--> fine codes --SoundStream decoder--> audio

Audio is `float32 [T]` at the bundle's rate in [-1, 1]; semantic tokens `int64 [S]`, 25/s; codes `int64 [Q, F]`, 50/s.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from audiolm_cli.audio import postfilter
from audiolm_cli.audio.files import MAX_SECONDS
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.config import SamplingConfig, TokenSpec
from audiolm_cli.console import Tell, counted
from audiolm_cli.errors import InputError, display
from audiolm_cli.language_models.likelihood import strangeness
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.stages import (
    REFERENCE_SECONDS,
    Noise,
    best_semantic,
    continue_coarse,
    continue_fine,
    continue_semantic,
    first_window,
)

CROSSFADE_SECONDS = 0.02
MAX_HEADER = 2**20  # bytes before the tensors of a token file
OVERLOADED = 0.02  # of a recording's samples at its peak: it was cut off there
SURPRISING = 250  # semantic tokens at the beginning of a recording that tell how strange it is

ProgressCallback = Callable[[str, float, int], None]  # stage, tokens made, tokens in all; `decode` counts frames


@dataclass(frozen=True)
class Sampling(SamplingConfig):
    """What a bundle has as defaults, here as it is asked for."""

    def stage(self, index: int) -> StageSampling:
        guidance = self.guidance if index == 1 else 0.0
        return StageSampling(self.temperature[index], self.top_k[index], self.top_p[index], guidance)


@dataclass(frozen=True)
class Prompt:
    """Audio to go on from, or to say again; `position` in the job list, `sample` number and `seed` key its noise."""

    samples: np.ndarray
    position: int = 0
    sample: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Output:
    """Audio `float32 [T]`, the first `prompt_samples` of it the prompt; by stage, what its batch took and made; its
    tokens, semantic `int64 [S]` and codes `int64 [Q, F]`, from sample `tokens_start` on; and how strange its prompt or
    source is to the bundle (`likelihood.Strangeness`, bits), where the bundle says what is strange, and what is strange
    about it, in words; and the scores of the `candidates` of which this is the best (`likelihood.prompt_gain`, bits a
    token), where there was a choice."""

    samples: np.ndarray
    semantic: Tensor
    codes: Tensor
    prompt_samples: int = 0
    tokens_start: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stage_tokens: dict[str, int] = field(default_factory=dict)  # frames in `decode`
    surprise: float | None = None
    unfamiliar: str = ""
    candidates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """A recording as tokens: semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic."""

    semantic: Tensor
    codes: Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    def save_bytes(self) -> bytes:
        """As safetensors: `semantic` int32, `codes` int32, and metadata (rates, bundle) as strings."""
        return save({"semantic": self.semantic.int(), "codes": self.codes.int()}, self.metadata)

    @staticmethod
    def load_bytes(data: bytes, bundle: Bundle) -> Tokens:
        """Raises InputError when `data` is no token file, one of another codec, or not what can come from a recording
        of up to an hour."""
        spec, header = bundle.config.tokens, int.from_bytes(data[:8], "little")
        frames = MAX_SECONDS * spec.sample_rate // spec.samples_per_frame + spec.frames_per_semantic
        if header > MAX_HEADER or len(data) > MAX_HEADER + 8 * (spec.quantizers + 1) * frames:
            raise InputError(f"not a token file, or of more than {MAX_SECONDS // 60} minutes")
        try:
            tensors = dict(deserialize(data))
            metadata = json.loads(data[8 : 8 + header]).get("__metadata__") or {}
            semantic, codes = (_integers(name, tensors[name]) for name in ("semantic", "codes"))
        except KeyError as error:
            raise InputError(f"not a token file (it has no tensor {error})") from error
        except (SafetensorError, ValueError, OverflowError) as error:
            raise InputError(f"not a token file ({display(str(error)[:200])})") from error
        if metadata.get("codec") != bundle.config.depends["codec"]["self"]:
            name = display(metadata.get("bundle", "(unnamed)")[:64])
            raise InputError(f"tokens of bundle {name}, not of {bundle.config.name}")
        if codes.ndim != 2 or not 0 < codes.shape[0] <= spec.quantizers or codes.shape[1] == 0:
            raise InputError(f"codes have shape {list(codes.shape)}, expected [1 to {spec.quantizers}, frames]")
        if semantic.ndim != 1 or len(semantic) * spec.frames_per_semantic != codes.shape[1]:
            raise InputError(
                f"semantic has shape {list(semantic.shape)}, expected [{codes.shape[1] / spec.frames_per_semantic:g}] "
                f"with {codes.shape[1]} frames of codes"
            )
        if not _within(codes, spec.codebook_size):
            raise InputError(f"codes must lie between 0 and {spec.codebook_size - 1}")
        same_tokenizer = metadata.get("tokenizer") == bundle.config.depends["tokenizer"]["self"]  # not only the codec
        if same_tokenizer and not _within(semantic, spec.semantic_vocabulary):
            raise InputError(f"semantic must lie between 0 and {spec.semantic_vocabulary - 1}")
        samples, most = metadata.get("samples", ""), codes.shape[1] * spec.samples_per_frame
        if not re.fullmatch("[0-9]{1,15}", samples) or not 0 < int(samples) <= most:
            raise InputError(f"samples must be from 1 to {most}, which the codes give, not {display(samples[:64])!r}")
        return Tokens(semantic, codes, metadata)


def _integers(name: str, tensor: dict[str, Any]) -> Tensor:
    """A tensor as safetensors describes it, of any type of integers, as int64."""
    kind = {"I": "<i", "U": "<u"}.get(tensor["dtype"][:1])
    if kind is None:
        raise ValueError(f"{name} must be integers, not {tensor['dtype']}")
    values = np.frombuffer(tensor["data"], f"{kind}{int(tensor['dtype'][1:]) // 8}")
    return torch.from_numpy(values.astype(np.int64).reshape(tensor["shape"]))  # reshape refuses impossible sizes


def _within(ids: Tensor, size: int) -> bool:
    return int(ids.min()) >= 0 and int(ids.max()) < size


def encode(bundle: Bundle, samples: np.ndarray, progress: ProgressCallback | None = None) -> Tokens:
    """Audio -> tokens; what is left of the last semantic token's length is padded with silence."""
    tell = counted(progress, "tokenize", -(-len(samples) // bundle.config.tokens.samples_per_semantic))
    return _encoded(bundle, samples, tell)


def _encoded(bundle: Bundle, samples: np.ndarray, tell: Tell | None = None) -> Tokens:
    spec = bundle.config.tokens
    metadata = {
        "format": "audiolm-tokens",
        "bundle": bundle.config.name,
        "codec": bundle.config.depends["codec"]["self"],
        "tokenizer": bundle.config.depends["tokenizer"]["self"],
        "sample_rate": str(spec.sample_rate),
        "samples": str(len(samples)),
        "frame_rate": f"{spec.sample_rate / spec.samples_per_frame:g}",
        "semantic_rate": f"{spec.semantic_rate:g}",
    }
    return Tokens(*bundle.tokenize(samples, tell), metadata)


def decode(
    bundle: Bundle, tokens: Tokens, quantizers: int | None = None, progress: ProgressCallback | None = None
) -> np.ndarray:
    """Tokens -> audio `float32 [T]`, from the first `quantizers` code streams (default: all)."""
    tell = counted(progress, "decode", tokens.codes.shape[1])
    audio = bundle.codec.decode(tokens.codes[None, :quantizers].to(bundle.device), tell)[0].cpu().numpy()
    return postfilter.limited(audio[: int(tokens.metadata["samples"])], bundle.config.tokens.sample_rate)


def continue_(
    bundle: Bundle, prompts: list[Prompt], *, duration: float, prompt_seconds: float, best_of: int = 1,
    provisional: bool = False, **options: Any,
) -> Iterator[Output]:  # fmt: skip
    """Continues every prompt by `duration` seconds, in order; `options` are the fields of `Run`.

    The last `prompt_seconds` of a prompt, cut from its end backwards to whole semantic tokens, condition what follows;
    a prompt must be at least one semantic token (40 ms) long. Of `best_of` candidates, which stage 1 makes, stages 2
    and 3 render the one that goes best with the prompt. The prompt's last tokens, which would differ if the recording
    went on, are made anew by stage 1; if `provisional`, kept as they are.
    """
    spec = bundle.config.tokens
    new_samples, new_tokens = _length(duration, spec)
    lookahead = 0 if provisional else bundle.config.tokenizer.lookahead
    for run in _runs(bundle, prompts, options):
        heard = [_condition(p.samples, prompt_seconds, spec) for p in run.prompts]
        known = run.encode(heard)
        kept = [k.semantic[: max(0, len(k.semantic) - lookahead)] for k in known]  # stage 1 makes the rest
        semantic, scores = run.semantic(kept, [len(k.semantic) + new_tokens for k in known], best_of)
        begun: dict[int, tuple[np.ndarray, postfilter.PostFilter]] = {}  # by prompt: what all of its samples begin with
        for n, output in enumerate(run.acoustic(semantic, [k.codes for k in known])):
            prompt, repeated = run.prompts[n].samples, known[n].codes.shape[1] * spec.samples_per_frame
            same = max(0, repeated - bundle.codec.lookahead * spec.samples_per_frame)
            if id(prompt) not in begun:
                filters = postfilter.chain(bundle.config.output, spec.sample_rate, heard[n], repeated)
                begun[id(prompt)] = filters.push(output.samples[:same]), filters
            beginning, filters = begun[id(prompt)]
            rest = copy.deepcopy(filters).whole(output.samples[same : repeated + new_samples])
            samples = join(prompt, np.concatenate([beginning, rest]), repeated, spec.sample_rate)
            start = len(prompt) - repeated  # what comes first of what was made renders the prompt's end
            made: dict[str, Any] = {"prompt_samples": len(prompt), "tokens_start": start}
            yield replace(output, samples=samples, candidates=tuple(scores[n]), **made)


def generate(bundle: Bundle, prompts: list[Prompt], *, duration: float, **options: Any) -> Iterator[Output]:
    """Makes `duration` seconds from nothing for every prompt, whose own samples do not count: what is said, by whom and
    where, is all sampled. `options` are the fields of `Run`."""
    spec = bundle.config.tokens
    new_samples, new_tokens = _length(duration, spec)
    nothing = torch.zeros(0, dtype=torch.int64)
    for run in _runs(bundle, prompts, options):
        semantic, _ = run.semantic([nothing] * len(run.prompts), [new_tokens] * len(run.prompts))
        for output in run.acoustic(semantic):
            filters = postfilter.chain(bundle.config.output, spec.sample_rate)
            yield replace(output, samples=filters.whole(output.samples[:new_samples]))


def resynth(
    bundle: Bundle, prompts: list[Prompt], *, speaker: np.ndarray | None = None, **options: Any
) -> Iterator[Output]:
    """Says every prompt again, in the voice of `speaker` (`float32 [T]`), else in one that is sampled.

    Semantic tokens are kept, acoustic ones sampled: the paper's acoustic generation, here behind a reference. An output
    is as long as its prompt. `options` are the fields of `Run`.
    """
    spec = bundle.config.tokens
    reference = None
    if speaker is not None:
        heard = postfilter.without_rumble(speaker, spec.sample_rate, bundle.config.output.high_pass)
        if postfilter.silent(speaker, spec.sample_rate):
            raise InputError("the reference is silent")
        reference = encode(bundle, reference_stretch(heard, spec))
    for run in _runs(bundle, prompts, options):
        semantic = [tokens.semantic for tokens in run.encode([p.samples for p in run.prompts])]
        made = run.acoustic(semantic, reference=reference, faithful=True)
        for output, prompt in zip(made, run.prompts, strict=True):
            filters = postfilter.chain(bundle.config.output, spec.sample_rate, prompt.samples, follow=True)
            yield replace(output, samples=filters.whole(output.samples[: len(prompt.samples)]))


def _runs(bundle: Bundle, prompts: list[Prompt], options: dict[str, Any]) -> Iterator[Run]:
    """The prompts, `batch_size` at a time."""
    size = options["batch_size"]
    for start in range(0, len(prompts), size):
        yield Run(bundle, prompts[start : start + size], **options)


@dataclass
class Run:
    """A batch on its way through the stages."""

    bundle: Bundle
    prompts: list[Prompt]
    sampling: Sampling
    batch_size: int  # engine batches are padded to it: results do not depend on how many prompts there are
    progress: ProgressCallback | None = None

    def __post_init__(self) -> None:
        self.noise = [Noise(prompt.seed, prompt.position, prompt.sample) for prompt in self.prompts]
        self.clock = _Clock(self.progress)
        self.strange: dict[int, tuple[float | None, str]] = {}  # of the prompts' samples, by their id

    def encode(self, recordings: list[np.ndarray]) -> list[Tokens]:
        """Tokens of recordings without their rumble; several samples of one prompt share theirs."""
        distinct = {id(p.samples): r for p, r in zip(self.prompts, recordings, strict=True)}
        made = {}
        spec, corner = self.bundle.config.tokens, self.bundle.config.output.high_pass
        per = spec.samples_per_semantic
        with self.clock.stage("tokenize", sum(-(-len(r) // per) for r in distinct.values())) as tell:
            for key, recording in distinct.items():
                # rumble that the stages hear they go on with, ever louder
                heard = postfilter.without_rumble(recording, spec.sample_rate, corner)
                made[key] = tokens = _encoded(self.bundle, heard, tell)
                self.strange[key] = _strange(self.bundle, recording, tokens)
        return [made[id(p.samples)] for p in self.prompts]

    def semantic(
        self, known: list[Tensor], totals: list[int], best_of: int = 1
    ) -> tuple[list[Tensor], list[list[float]]]:
        """Stage 1: known `int64 [S_known]` -> `int64 [totals[i]]`, the best of so many candidates, and the scores of
        all where there is a choice."""
        model, common = self.bundle.semantic, (known, totals, self.noise, self.sampling.stage(0), self.batch_size)
        count = sum(totals) - sum(map(len, known))
        if best_of == 1:
            with self.clock.stage("semantic", count) as tell:
                return continue_semantic(model, *common, tell), [[] for _ in known]
        ends = [first_window(model, len(k), total)[2] for k, total in zip(known, totals, strict=True)]
        count += (best_of - 1) * (sum(ends) - sum(map(len, known)))
        with self.clock.stage("semantic", count) as tell:
            return best_semantic(model, *common, best_of, tell)

    def acoustic(
        self,
        semantic: list[Tensor],
        known: list[Tensor] | None = None,
        reference: Tokens | None = None,
        faithful: bool = False,
    ) -> list[Output]:
        """Stages 2 and 3 and the decoder: semantic `int64 [S]` and known codes `int64 [Q, F_known]` (of a prompt;
        default: none) -> `S * samples_per_semantic` samples, in the voice of `reference` where there is one; `faithful`
        when the semantic tokens are what was asked for."""
        spec = self.bundle.config.tokens
        known = known or [torch.zeros(spec.quantizers, 0, dtype=torch.int64)] * len(semantic)
        lengths = [len(s) * spec.frames_per_semantic - k.shape[1] for s, k in zip(semantic, known, strict=True)]
        before = (reference.semantic, reference.codes[: spec.coarse]) if reference else None
        with self.clock.stage("coarse", sum(lengths) * spec.coarse) as tell:
            prefix, sampling = [k[: spec.coarse] for k in known], self.sampling.stage(1)
            codes = continue_coarse(
                self.bundle.coarse, semantic, prefix, self.noise, sampling, self.batch_size, tell, before, faithful
            )
        if self.bundle.fine is not None:
            with self.clock.stage("fine", sum(lengths) * spec.fine) as tell:
                sampling = self.sampling.stage(2)
                codes = continue_fine(self.bundle.fine, codes, known, self.noise, sampling, self.batch_size, tell)
        audio, begun, codec = [], dict[bytes, Any](), self.bundle.codec
        with self.clock.stage("decode", sum(code.shape[1] for code in codes)) as tell:
            for code, k in zip(codes, known, strict=True):
                made = codec.decode(code[None].to(self.bundle.device), tell, k.shape[1], begun)
                audio.append(made[0].cpu().numpy())
        seconds, tokens = self.clock.seconds, self.clock.tokens
        strange = [self.strange.get(id(prompt.samples), (None, "")) for prompt in self.prompts]
        rows = zip(audio, semantic, codes, strange, strict=True)
        common: dict[str, Any] = {"stage_seconds": seconds, "stage_tokens": tokens}
        return [Output(a, s, c, **common, surprise=x, unfamiliar=why) for a, s, c, (x, why) in rows]


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


def _length(duration: float, spec: TokenSpec) -> tuple[int, int]:
    """Samples of `duration` seconds, and the semantic tokens that cover them."""
    samples = round(duration * spec.sample_rate)
    return samples, -(-samples // spec.samples_per_semantic)


def _condition(samples: np.ndarray, prompt_seconds: float, spec: TokenSpec) -> np.ndarray:
    """The prompt's last `prompt_seconds`, whole semantic tokens counted from its end."""
    wanted = min(len(samples), max(spec.samples_per_semantic, round(prompt_seconds * spec.sample_rate)))
    count = wanted // spec.samples_per_semantic * spec.samples_per_semantic
    if count == 0:
        raise InputError(f"prompt is shorter than {1000 / spec.semantic_rate:g} ms, one semantic token")
    return samples[len(samples) - count :]


def join(prompt: np.ndarray, decoded: np.ndarray, heard: int, rate: int) -> np.ndarray:
    """The prompt as it was, an equal-power crossfade within its last 20 ms, then what was generated.

    `decoded` begins with `heard` samples that render the prompt's end.
    """
    fade = min(round(CROSSFADE_SECONDS * rate), heard)
    angle = (np.arange(fade, dtype=np.float32) + 0.5) / fade * np.float32(np.pi / 2)
    before, after, out, in_ = prompt[len(prompt) - fade :], decoded[heard - fade : heard], np.cos(angle), np.sin(angle)
    mixed = before * out + after * in_
    if np.abs(mixed).max(initial=0) > 1:  # of equal amplitude instead: never louder than both
        mixed = before * out**2 + after * in_**2
    return np.concatenate([prompt[: len(prompt) - fade], mixed, decoded[heard:]]).astype(np.float32)


def reference_stretch(samples: np.ndarray, spec: TokenSpec, seconds: float = REFERENCE_SECONDS) -> np.ndarray:
    """The up to `seconds` of a recording that are fullest of speech, whole semantic tokens of them, and cut where there
    is a pause if one comes in the second half. Loudness decides: no model is needed to hear where nobody speaks."""
    token = spec.samples_per_semantic
    count, wanted = len(samples) // token, round(seconds * spec.semantic_rate)
    if count == 0:
        raise InputError(f"reference is shorter than {1000 / spec.semantic_rate:g} ms, one semantic token")
    power = np.square(samples[: count * token].reshape(count, token)).mean(1)
    level = 10 * np.log10(power + 1e-10)
    spoken = level > np.percentile(level, 95) - 20  # dB
    inside = np.convolve(spoken, np.ones(min(wanted, count)), "valid")
    first = int(inside.argmax())
    end = first + min(wanted, count)
    pauses = np.flatnonzero(~spoken[(first + end) // 2 : end])
    if len(pauses):
        end = (first + end) // 2 + int(pauses[-1]) + 1
    return samples[first * token : end * token]


class _Clock:
    """Seconds and tokens of every stage, and the caller's progress."""

    def __init__(self, progress: ProgressCallback | None):
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def stage(self, name: str, total: int) -> _Stage:
        return _Stage(self, name, total)


class _Stage:
    def __init__(self, clock: _Clock, name: str, total: int):
        self.clock, self.name, self.total, self.done = clock, name, total, 0.0

    def __enter__(self) -> Tell:
        self.start = time.perf_counter()
        self.tell(0)
        return self.tell

    def tell(self, count: float) -> None:
        self.done += count
        if self.clock.progress:
            self.clock.progress(self.name, self.done, self.total)

    def __exit__(self, *_: object) -> None:
        self.clock.seconds[self.name] = time.perf_counter() - self.start
        self.clock.tokens[self.name] = round(self.done)
