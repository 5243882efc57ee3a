"""AudioLM from end to end: what the command line, the Python API and the server call.

    prompt --semantic tokenizer--> semantic tokens --stage 1--> more semantic tokens
           --SoundStream encoder--> coarse codes   --stage 2--> more coarse codes  (reads the semantic tokens)
                                                   --stage 3--> fine codes --SoundStream decoder--> audio

A waveform is `float32 [T]` at the bundle's rate in [-1, 1]; semantic tokens `int64 [S]`, 25/s; codes `int64 [Q, F]`,
50/s. Outputs are rendered chunk by chunk: `stream` yields each chunk as soon as it is ready, `continue_`, `generate`
and `resynth` collect them. From Python:

    bundle = load("speech")                                                       # audiolm_cli.models
    request = ContinueRequest("prompt.wav", duration=7, seed=1)                   # audiolm_cli.request
    waveforms = [output.waveform for output in continue_(bundle, request)]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.audio import files, postfilter
from audiolm_cli.backend import Backend
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.config import TokenSpec
from audiolm_cli.console import Progress, counted
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.language_models.stages import TokenSource
from audiolm_cli.rendering import Chunk, Prompt, Run, Stitcher, encoded, run_for
from audiolm_cli.request import BATCH_SIZE, ContinueRequest, GenerateRequest, ResynthRequest, SampledRequest
from audiolm_cli.token_file import Tokens

# Of a resynthesis, see `CoarseStage`. With equal weights the reference's voice is the nearest in 0.48 of 80 outputs
# instead of 0.57.
GUIDE_WEIGHTS, GUIDE_WEIGHTS_WITHOUT_VOICE = (0.8, 0.2), (0.5, 0.5)
VOICE_SECONDS = 4.0  # of a reference
PAUSE_WORTH = 0.2  # s of speech that a reference may lack if it ends in a pause


@dataclass(frozen=True)
class Output:
    """The result for one prompt.

    waveform: `float32 [T]`, of which the first `prompt_samples` are the prompt.
    semantic, codes: the tokens from sample `tokens_start` on, `int64 [S]` and `int64 [Q, F]`.
    stage_seconds, stage_tokens: time and tokens of each stage, for the whole batch; `decode` counts frames.
    surprise: out-of-distribution score of the prompt or source, bits a token; None for a bundle without a threshold.
    unfamiliar: why it is out of distribution, in words.
    candidates: scores (`likelihood.prompt_gain`) of the candidates that this is the best of, if there were several.
    """

    waveform: np.ndarray
    semantic: Tensor
    codes: Tensor
    prompt_samples: int = 0
    tokens_start: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stage_tokens: dict[str, int] = field(default_factory=dict)
    surprise: float | None = None
    unfamiliar: str = ""
    candidates: tuple[float, ...] = ()


def encode(bundle: Backend, waveform: np.ndarray, progress: Progress | None = None) -> Tokens:
    """Turns a waveform into tokens, the last of them padded with silence."""
    tell = counted(progress, "tokenize", -(-len(waveform) // bundle.config.tokens.samples_per_semantic))
    return encoded(bundle, waveform, tell)


def decode(
    bundle: Bundle, tokens: Tokens, quantizers: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    """Turns tokens into a waveform, from the first `quantizers` code streams (default: all)."""
    tell = counted(progress, "decode", tokens.codes.shape[1])
    audio = bundle.codec.decode(tokens.codes[None, :quantizers].to(bundle.device), tell)[0].cpu().numpy()
    return postfilter.limited(audio[: int(tokens.metadata["samples"])], bundle.config.tokens.sample_rate)


def continue_(
    bundle: Backend,
    request: ContinueRequest,
    prompts: Sequence[Prompt] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    resampled_tokens: int | None = None,
) -> Iterator[Output]:
    """Continues prompts, in order; by default the recording that the request names.

    The last `prompt_seconds` of a prompt, cut from its end backwards to whole semantic tokens, condition what follows.
    Stage 1 samples `best_of` candidates; stages 2 and 3 render the one that goes best with the prompt. The prompt's
    last tokens would differ if the recording went on: stage 1 samples `resampled_tokens` of them again, by default the
    bundle's number, and never more than the tokenizer's lookahead.

    Raises InputError for a prompt shorter than one semantic token (40 ms).
    """
    for run in _batches(bundle, request, prompts, batch_size, progress):
        yield from _collected(run, _continued(run, request, resampled_tokens))


def generate(
    bundle: Backend,
    request: GenerateRequest,
    prompts: Sequence[Prompt] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Iterator[Output]:
    """Samples everything: content, voice and room. Prompts only identify the random numbers."""
    for run in _batches(bundle, request, prompts, batch_size, progress):
        yield from _collected(run, _generated(run, request))


def resynth(
    bundle: Backend,
    request: ResynthRequest,
    prompts: Sequence[Prompt] | None = None,
    *,
    speaker: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Iterator[Output]:
    """Resynthesises prompts in another voice: that of the waveform `speaker`, by default of the recording that the
    request names, or a sampled voice if it names none.

    Keeps the semantic tokens and samples the acoustic ones: the paper's acoustic generation, here behind a reference.
    An output is as long as its prompt. Raises InputError for a silent or too short reference.
    """
    reference = _reference(bundle, request, speaker)
    for run in _batches(bundle, request, prompts, batch_size, progress):
        yield from _collected(run, _resynthesised(run, reference))


class Stream:
    """One output, sampled while its chunks are read. The chunks of `continue_` begin with the whole prompt."""

    def __init__(self, run: Run, chunks: Iterator[tuple[int, Chunk]]):
        self._run, self._chunks = run, chunks

    def __iter__(self) -> Iterator[Chunk]:
        return (chunk for _, chunk in self._chunks)

    def output(self, chunks: Sequence[Chunk]) -> Output:
        """The output so far: these chunks, at least one, and what is known about the prompt and the stages."""
        return _output(self._run, 0, chunks)

    def leave_out(self, seconds: float) -> None:
        """Takes seconds just spent on something else off the stages' times."""
        self._run.clock.leave_out(seconds)


def stream(
    bundle: Backend,
    request: ContinueRequest | GenerateRequest | ResynthRequest,
    prompt: Prompt | None = None,
    *,
    speaker: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Stream:
    """Streams one output, the same to the last bit as that of `continue_`, `generate` or `resynth`. A duration may be
    infinite. `batch_size` is what theirs would be."""
    (run, *_) = _batches(bundle, request, None if prompt is None else [prompt], batch_size, progress, endless=True)
    run = replace(run, prompts=run.prompts[:1])
    if isinstance(request, ContinueRequest):
        return Stream(run, _continued(run, request))
    if isinstance(request, GenerateRequest):
        return Stream(run, _generated(run, request))
    return Stream(run, _resynthesised(run, _reference(bundle, request, speaker)))


def _continued(run: Run, request: ContinueRequest, resampled_tokens: int | None = None) -> Iterator[tuple[int, Chunk]]:
    config, spec = run.bundle.config, run.bundle.config.tokens
    new_samples, new_tokens = _length(request.duration, spec)
    again = min(config.resampled_tokens if resampled_tokens is None else resampled_tokens, config.lookahead)
    prompts = [prompt.waveform for prompt in run.prompts]
    ends = [_cropped_prompt(prompt, request.prompt_seconds or config.prompt_seconds, spec) for prompt in prompts]
    known = run.encode(ends)
    run.score_prompts(ends, known)
    made = run.extended(known, new_tokens, again)
    repeated = [len(k.semantic) * spec.samples_per_semantic for k in known]  # the first tokens render the prompt's end
    filters = run.once(lambda n: postfilter.chain(config.output, spec.sample_rate, ends[n], repeated[n]))
    shapes = [
        Stitcher(spec.sample_rate, copy.deepcopy(filter), behind + new_samples, prompt, behind)
        for filter, behind, prompt in zip(filters, repeated, prompts, strict=True)
    ]
    for n, (prompt, shape) in enumerate(zip(prompts, shapes, strict=True)):
        run.about[n].update(prompt_samples=len(prompt), tokens_start=len(prompt) - repeated[n])
        yield n, _prompt_chunk(config.sampled_quantizers, prompt[: len(prompt) - shape.fade])
    yield from _postprocessed(shapes, made)


def _generated(run: Run, request: GenerateRequest) -> Iterator[tuple[int, Chunk]]:
    config, rate = run.bundle.config, run.bundle.config.tokens.sample_rate
    new_samples, new_tokens = _length(request.duration, config.tokens)
    codes = torch.zeros(config.tokens.quantizers, 0, dtype=torch.int64)
    nothing = [Tokens(codes[0], codes)] * len(run.prompts)
    shapes = [Stitcher(rate, postfilter.chain(config.output, rate), new_samples) for _ in run.prompts]
    yield from _postprocessed(shapes, run.extended(nothing, new_tokens))


def _resynthesised(run: Run, reference: Tokens | None) -> Iterator[tuple[int, Chunk]]:
    config, rate = run.bundle.config, run.bundle.config.tokens.sample_rate
    sources = [prompt.waveform for prompt in run.prompts]
    known = run.encode(sources)
    run.score_prompts(sources, known)
    shapes = [
        Stitcher(rate, postfilter.chain(config.output, rate, source, follow=True), len(source)) for source in sources
    ]
    semantic = TokenSource([tokens.semantic for tokens in known])
    weights = GUIDE_WEIGHTS if reference else GUIDE_WEIGHTS_WITHOUT_VOICE
    yield from _postprocessed(shapes, run.rendered(semantic, reference=reference, guide_weights=weights))


def _postprocessed(
    shapes: Sequence[Stitcher], chunks: Iterator[tuple[int, Chunk, bool]]
) -> Iterator[tuple[int, Chunk]]:
    """Post-processes decoded chunks."""
    for n, chunk, last in chunks:
        waveform = shapes[n].push(chunk.waveform)
        if last:
            waveform = np.concatenate([waveform, shapes[n].finish()])
        yield n, replace(chunk, waveform=waveform)


def _collected(run: Run, chunks: Iterator[tuple[int, Chunk]]) -> Iterator[Output]:
    """Collects the chunks of a batch into its outputs."""
    found: list[list[Chunk]] = [[] for _ in run.prompts]
    for n, chunk in chunks:
        found[n].append(chunk)
    for n, parts in enumerate(found):
        yield _output(run, n, parts)


def _output(run: Run, number: int, chunks: Sequence[Chunk]) -> Output:
    return Output(
        np.concatenate([chunk.waveform for chunk in chunks]),
        torch.cat([chunk.semantic for chunk in chunks]),
        torch.cat([chunk.codes for chunk in chunks], 1),
        stage_seconds=run.clock.seconds,
        stage_tokens=run.clock.tokens,
        **run.about[number],
    )


def _prompt_chunk(quantizers: int, waveform: np.ndarray) -> Chunk:
    """A chunk without tokens."""
    nothing = torch.zeros(quantizers, 0, dtype=torch.int64)
    return Chunk(waveform, nothing[0], nothing)


def _batches(
    bundle: Backend,
    request: SampledRequest,
    prompts: Sequence[Prompt] | None,
    batch_size: int,
    progress: Progress | None,
    endless: bool = False,
) -> Iterator[Run]:
    """Batches of prompts; by default all samples of the request's input."""
    request.check(bundle.config)
    if not endless:
        require_end(request)
    if prompts is None:
        prompt = Prompt()
        if request.input is not None:
            prompt = Prompt(files.read(request.input, bundle.config.tokens.sample_rate).samples)
        prompts = [replace(prompt, sample=n) for n in range(request.num_samples)]
    for start in range(0, len(prompts), batch_size):
        yield run_for(bundle)(bundle, request, prompts[start : start + batch_size], batch_size, progress)


def require_end(request: SampledRequest) -> None:
    """Raises UsageError for an infinite duration."""
    if getattr(request, "duration", 0) == math.inf:
        raise UsageError("duration: only a stream can be without end")


def _reference(bundle: Backend, request: ResynthRequest, speaker: np.ndarray | None) -> Tokens | None:
    """The tokens of the reference voice, if there is one."""
    spec = bundle.config.tokens
    if speaker is None and request.speaker is not None:
        speaker = files.read(request.speaker, spec.sample_rate).samples
    if speaker is None:
        return None
    clean = postfilter.without_rumble(speaker, spec.sample_rate, bundle.config.output.high_pass)
    if postfilter.silent(speaker, spec.sample_rate):
        raise InputError("the reference is silent")
    return encode(bundle, reference_stretch(clean, spec))


def _length(duration: float, spec: TokenSpec) -> tuple[float, float]:
    """The number of samples in `duration` seconds, and of the semantic tokens that cover them."""
    if duration == math.inf:
        return math.inf, math.inf
    samples = round(duration * spec.sample_rate)
    return samples, -(-samples // spec.samples_per_semantic)


def _cropped_prompt(waveform: np.ndarray, prompt_seconds: float, spec: TokenSpec) -> np.ndarray:
    """The prompt's last `prompt_seconds`, whole semantic tokens counted from its end."""
    wanted = min(len(waveform), max(spec.samples_per_semantic, round(prompt_seconds * spec.sample_rate)))
    count = wanted // spec.samples_per_semantic * spec.samples_per_semantic
    if count == 0:
        raise InputError(f"prompt is shorter than {1000 / spec.semantic_rate:g} ms, one semantic token")
    return waveform[len(waveform) - count :]


def reference_stretch(waveform: np.ndarray, spec: TokenSpec) -> np.ndarray:
    """The part of a recording whose voice a resynthesis takes."""
    first, end = spoken_stretch(waveform, spec, VOICE_SECONDS)
    return waveform[first * spec.samples_per_semantic : end * spec.samples_per_semantic]


def token_levels(waveform: np.ndarray, spec: TokenSpec) -> np.ndarray:
    """The level of each whole semantic token's sound, in dBFS, `[S]`."""
    count = len(waveform) // spec.samples_per_semantic
    sounds = waveform[: count * spec.samples_per_semantic].reshape(count, spec.samples_per_semantic)
    return 10 * np.log10(np.square(sounds).mean(1) + 1e-10)


def spoken_stretch(waveform: np.ndarray, spec: TokenSpec, seconds: float) -> tuple[int, int]:
    """Finds the stretch of `seconds`, or the whole of a shorter recording, with the most speech by its level, which
    may be a little less if it then ends in a pause: first and end in semantic tokens."""
    level = token_levels(waveform, spec)
    if not len(level):
        raise InputError(f"reference is shorter than {1000 / spec.semantic_rate:g} ms, one semantic token")
    size = min(round(seconds * spec.semantic_rate), len(level))
    spoken = level > np.percentile(level, 95) - 20  # dB
    inside = np.convolve(spoken, np.ones(size), "valid")
    first = int((inside + round(PAUSE_WORTH * spec.semantic_rate) * ~spoken[size - 1 :]).argmax())
    return first, first + size
