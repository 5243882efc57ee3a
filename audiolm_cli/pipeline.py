"""AudioLM from end to end: start reading here.

    prompt --semantic tokenizer--> semantic tokens --stage 1--> more semantic tokens
           --SoundStream encoder--> coarse codes   --stage 2--> more coarse codes  (reads the semantic tokens)
                                                   --stage 3--> fine codes --SoundStream decoder--> audio

Audio is `float32 [T]` at the bundle's rate in [-1, 1]; semantic tokens `int64 [S]`, 25/s; codes `int64 [Q, F]`, 50/s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audiolm_cli.bundle import Bundle
from audiolm_cli.config import TokenSpec
from audiolm_cli.errors import InputError
from audiolm_cli.stages import Noise, StageSampling, continue_coarse, continue_fine, continue_semantic

CROSSFADE_SECONDS = 0.02

ProgressCallback = Callable[[str, int, int], None]  # stage, tokens made, tokens in all; `decode` counts frames


@dataclass(frozen=True)
class Sampling:
    """Temperature, top-k (0: off) and top-p for the semantic, coarse and fine stage each."""

    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]

    def stage(self, index: int) -> StageSampling:
        return StageSampling(self.temperature[index], self.top_k[index], self.top_p[index])


@dataclass(frozen=True)
class Prompt:
    """Audio to be continued; `position` in the job list and `sample` number key its noise."""

    samples: np.ndarray
    position: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Continuation:
    """The whole prompt and what follows it, `float32 [T_prompt + new]`; what its batch took and made, by stage."""

    samples: np.ndarray
    prompt_samples: int
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stage_tokens: dict[str, int] = field(default_factory=dict)  # frames in `decode`


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
        """Raises InputError when `data` is no token file, or one of another bundle."""
        try:
            tensors = load(data)
            header = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + header]).get("__metadata__", {})
            semantic, codes = tensors["semantic"].long(), tensors["codes"].long()
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"not a token file ({error})") from error
        spec = bundle.config.tokens
        if metadata.get("codec") != bundle.config.depends["codec"]["self"]:
            raise InputError(f"tokens of bundle {metadata.get('bundle', '(unnamed)')}, not of {bundle.config.name}")
        if codes.ndim != 2 or not 0 < codes.shape[0] <= spec.quantizers or codes.shape[1] == 0:
            raise InputError(f"codes have shape {list(codes.shape)}, expected [1 to {spec.quantizers}, frames]")
        if int(codes.min()) < 0 or int(codes.max()) >= spec.codebook_size:
            raise InputError(f"codes must lie between 0 and {spec.codebook_size - 1}")
        return Tokens(semantic, codes, metadata)


def encode(bundle: Bundle, samples: np.ndarray) -> Tokens:
    """Audio -> tokens; what is left of the last semantic token's length is padded with silence."""
    spec = bundle.config.tokens
    count = -(-len(samples) // spec.samples_per_semantic) * spec.samples_per_semantic
    audio = torch.from_numpy(np.pad(samples, (0, count - len(samples)))).to(bundle.device)[None]
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
    return Tokens(bundle.tokenizer.tokenize(audio)[0].cpu(), bundle.codec.encode(audio)[0].cpu(), metadata)


def decode(bundle: Bundle, tokens: Tokens, quantizers: int | None = None) -> np.ndarray:
    """Tokens -> audio `float32 [T]`, from the first `quantizers` code streams (default: all)."""
    audio = bundle.codec.decode(tokens.codes[None, :quantizers].to(bundle.device))[0].cpu().numpy()
    return audio[: int(tokens.metadata.get("samples", len(audio)))]


def continue_(
    bundle: Bundle,
    prompts: list[Prompt],
    *,
    duration: float,
    prompt_seconds: float,
    seed: int,
    sampling: Sampling,
    batch_size: int,
    progress: ProgressCallback | None = None,
) -> Iterator[Continuation]:
    """Continues every prompt by `duration` seconds, in order, `batch_size` at a time.

    The last `prompt_seconds` of a prompt, cut from its end backwards to whole semantic tokens, condition what follows;
    a prompt must be at least one semantic token (40 ms) long.
    """
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        yield from _continue_batch(bundle, batch, duration, prompt_seconds, seed, sampling, batch_size, progress)


def _continue_batch(
    bundle: Bundle, prompts: list[Prompt], duration: float, prompt_seconds: float, seed: int, sampling: Sampling,
    batch_size: int, progress: ProgressCallback | None,
) -> list[Continuation]:  # fmt: skip
    spec, config = bundle.config.tokens, bundle.config
    new_samples = round(duration * spec.sample_rate)
    new_tokens = -(-new_samples // spec.samples_per_semantic)
    clock = _Clock(progress)

    heard = {id(p.samples): _condition(p.samples, prompt_seconds, spec) for p in prompts}
    with clock.stage("tokenize", sum(map(len, heard.values())) // spec.samples_per_semantic) as tell:
        conditions = {}  # several samples of one prompt share its tokens
        for key, samples in heard.items():
            conditions[key] = encode(bundle, samples)
            tell(len(conditions[key].semantic))
    known = [conditions[id(prompt.samples)] for prompt in prompts]
    noise = [Noise(seed, prompt.position, prompt.sample) for prompt in prompts]

    lookahead = config.tokenizer.lookahead  # the last tokens would differ if the recording went on: stage 1 makes them
    kept = [k.semantic[: max(0, len(k.semantic) - lookahead)] for k in known]
    totals = [len(k.semantic) + new_tokens for k in known]
    frames = new_tokens * spec.frames_per_semantic * len(prompts)
    with clock.stage("semantic", sum(t - len(k) for t, k in zip(totals, kept, strict=True))) as tell:
        semantic = continue_semantic(bundle.semantic, kept, totals, noise, sampling.stage(0), batch_size, tell)
    with clock.stage("coarse", frames * spec.coarse) as tell:
        prefix = [k.codes[: spec.coarse] for k in known]
        codes = continue_coarse(bundle.coarse, semantic, prefix, noise, sampling.stage(1), batch_size, tell)
    if bundle.fine is not None:
        with clock.stage("fine", frames * spec.fine) as tell:
            prefix = [k.codes for k in known]
            codes = continue_fine(bundle.fine, codes, prefix, noise, sampling.stage(2), batch_size, tell)
    with clock.stage("decode", sum(code.shape[1] for code in codes)) as tell:
        outputs = []
        for prompt, condition, code in zip(prompts, known, codes, strict=True):
            decoded = bundle.codec.decode(code[None].to(bundle.device))[0].cpu().numpy()
            repeated = condition.codes.shape[1] * spec.samples_per_frame  # of it, what renders the prompt
            outputs.append(join(prompt.samples, decoded[: repeated + new_samples], repeated, spec.sample_rate))
            tell(code.shape[1])
    return [Continuation(o, len(p.samples), clock.seconds, clock.tokens) for o, p in zip(outputs, prompts, strict=True)]


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
    mixed = prompt[len(prompt) - fade :] * np.cos(angle) + decoded[heard - fade : heard] * np.sin(angle)
    return np.concatenate([prompt[: len(prompt) - fade], mixed, decoded[heard:]]).astype(np.float32)


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
        self.clock, self.name, self.total, self.done = clock, name, total, 0

    def __enter__(self) -> Callable[[int], None]:
        self.start = time.perf_counter()
        return self.tell

    def tell(self, count: int) -> None:
        self.done += count
        if self.clock.progress:
            self.clock.progress(self.name, self.done, self.total)

    def __exit__(self, *_: object) -> None:
        self.clock.seconds[self.name] = time.perf_counter() - self.start
        self.clock.tokens[self.name] = self.done
