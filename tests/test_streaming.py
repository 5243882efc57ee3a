"""An output that is heard while it is made is the one that a file gets, and needs no more memory the longer it is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli import native, pipeline
from audiolm_cli.bundles import bundle
from audiolm_cli.config import STAGES, Layout, preset
from audiolm_cli.errors import UsageError
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.language_models.tokens import TokenBuffer
from audiolm_cli.pipeline import Output, Prompt
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from tests.helpers.bundles import write_bundle
from tests.helpers.sounds import noise

LIVELY: Any = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "guidance": 1.0, "seed": 5}
WAYS: dict[str, Any] = {
    "continue": ContinueRequest(duration=3.11, prompt_seconds=0.8, **LIVELY),
    "prompt guidance": ContinueRequest(duration=2.3, prompt_seconds=0.8, until_end=True, prompt_guidance=1, **LIVELY),
    "until end": ContinueRequest(duration=3, prompt_seconds=0.8, until_end=True, **LIVELY),
    "longest pause": ContinueRequest(duration=2.3, prompt_seconds=0.8, max_pause=0.08, **LIVELY),
    "best of": ContinueRequest(duration=2.3, prompt_seconds=0.8, best_of=3, **LIVELY),
    "generate": GenerateRequest(duration=3.11, **LIVELY),
    "resynth": ResynthRequest(**LIVELY),
}


def loaded(
    folder: Path, seconds: float, layout: Layout | None = None, kernel: str = "native", **settings: Any
) -> bundle.Bundle:
    config = preset("tiny")
    how: dict[str, Any] = {"window_seconds": seconds, **({"layout": layout} if layout else {})}
    config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **how) for name in STAGES})
    config = dataclasses.replace(config, pause_tokens=tuple(range(9)), **settings)  # of 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOLM_KERNEL", kernel)
        return bundle.load(str(write_bundle(folder / "tiny", config)), device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=["1 s", "2.4 s", "guided", "plain", "torch"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    if request.param in ("1 s", "2.4 s", "guided") and not native.library("plain"):
        pytest.skip("the native kernel is not compiled here")
    kinds: dict[str, dict[str, Any]] = {
        "1 s": {"seconds": 1.0}, "2.4 s": {"seconds": 2.4}, "plain": {"seconds": 1.0, "layout": "plain"},
        "torch": {"seconds": 1.0, "kernel": "torch"}, "guided": {"seconds": 1.0, "guide_weights": (0.25, 0.75)},
    }  # fmt: skip
    how = kinds[request.param]
    return loaded(tmp_path_factory.mktemp("bundles"), **how)


def whole(loaded: bundle.Bundle, way: str, prompts: list[Prompt], **how: Any) -> list[Output]:
    function = {"generate": pipeline.generate, "resynth": pipeline.resynth}.get(way, pipeline.continue_)
    return list(function(loaded, WAYS[way], prompts, **how))  # type: ignore[operator]


def streamed(loaded: bundle.Bundle, request: Any, prompt: Prompt, **how: Any) -> Output:
    stream = pipeline.stream(loaded, request, prompt, **how)
    return stream.output(list(stream))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_is_what_a_file_gets_alone_and_among_others(tiny: bundle.Bundle, way: str) -> None:
    """The others are longer and shorter, so that their windows end elsewhere."""
    prompts = [Prompt(noise(seconds, n), n) for n, seconds in enumerate((1.0, 0.3, 2.6))]
    files = whole(tiny, way, [*prompts, dataclasses.replace(prompts[0], sample=1)], batch_size=4)
    for prompt, file in zip(prompts, files, strict=False):
        stream = streamed(tiny, WAYS[way], prompt, batch_size=4)
        assert np.array_equal(stream.waveform, file.waveform)
        assert torch.equal(stream.semantic, file.semantic)
        assert torch.equal(stream.codes, file.codes)
        assert stream.candidates == file.candidates
        assert stream.prompt_samples == file.prompt_samples
    assert not np.array_equal(files[0].waveform, files[3].waveform)


@pytest.mark.slow
def test_stages_that_wait_for_each_other_make_what_each_makes_by_itself(tiny: bundle.Bundle) -> None:
    """All semantic tokens first, then all coarse codes, then all fine ones."""
    request, made = WAYS["continue"], whole(tiny, "continue", [Prompt(noise(1.0), 3)], batch_size=2)[0]
    known, sampling = made.codes[:, :40], request.sampling(tiny.config.sampling)
    draws, keys = {name: sampling.stage(name) for name in STAGES}, [Noise(5, 3, 0)]
    lookahead = tiny.config.tokenizer.lookahead
    begun = [made.semantic[: 20 - lookahead]]
    (semantic,) = stages.continue_semantic(
        tiny.semantic, begun, [len(made.semantic)], stages.StageContext(keys, draws["semantic"], 2)
    )
    assert torch.equal(semantic, made.semantic)
    guided = dataclasses.replace(draws["coarse"], guide_weights=tiny.config.guide_weights)
    (coarse,) = stages.continue_coarse(tiny.coarse, [semantic], [known[:4]], stages.StageContext(keys, guided, 2))
    assert torch.equal(coarse, made.codes[:4])
    assert tiny.fine is not None
    (codes,) = stages.complete(tiny.fine, [coarse], [known], stages.StageContext(keys, draws["fine"], 2))
    assert torch.equal(codes, made.codes)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["continue", "generate"])
def test_the_beginning_does_not_depend_on_how_long_it_goes_on(tiny: bundle.Bundle, way: str) -> None:
    prompt, short = Prompt(noise(1.0)), WAYS[way]
    (file,) = whole(tiny, way, [prompt], batch_size=1)
    chunks = iter(pipeline.stream(tiny, dataclasses.replace(short, duration=math.inf), prompt, batch_size=1))
    sound, codes = [np.zeros(0, np.float32)], [torch.zeros(12, 0, dtype=torch.int64)]
    while sum(map(len, sound)) < len(file.waveform):
        chunk = next(chunks)
        sound.append(chunk.waveform)
        codes.append(chunk.codes)
    settled = len(file.waveform) - 20000  # of the last windows, how much there is of them may count
    assert torch.equal(torch.cat(codes, 1)[:4, : file.codes.shape[1] - 20], file.codes[:4, :-20])
    assert np.array_equal(np.concatenate(sound)[:settled], file.waveform[:settled])


@pytest.mark.slow
def test_a_stream_without_end_holds_no_more_the_longer_it_is(tiny: bundle.Bundle, monkeypatch: Any) -> None:
    buffers: list[TokenBuffer] = []
    begin = TokenBuffer.__init__

    def watched(self: TokenBuffer, *rest: Any) -> None:
        begin(self, *rest)
        buffers.append(self)

    monkeypatch.setattr(TokenBuffer, "__init__", watched)
    stream = iter(pipeline.stream(tiny, GenerateRequest(duration=math.inf, **LIVELY), batch_size=1))
    samples = 0
    while samples < 20 * 16000:
        samples += len(next(stream).waveform)
    assert max(map(len, buffers)) >= 20 * 50
    assert max(buffer.tail.shape[-1] for buffer in buffers) < 8 * 50
    with pytest.raises(UsageError, match="without end"):
        list(pipeline.generate(tiny, GenerateRequest(duration=math.inf)))


def test_the_first_sound_is_there_when_half_a_second_is_made(tmp_path: Path) -> None:
    tiny = loaded(tmp_path, 10.0)
    for request in (WAYS["continue"], WAYS["generate"], WAYS["resynth"]):
        stream = pipeline.stream(tiny, request, Prompt(noise(1.0)))
        chunks, samples = list[Any](), 0
        for chunk in stream:
            chunks.append(chunk)
            samples += len(chunk.waveform)
            made = stream.output(chunks)
            if samples > made.prompt_samples:
                break
        assert made.codes.shape[1] <= 40 + 20
        assert made.stage_tokens["coarse"] <= 4 * (25 + 16)
        assert made.stage_tokens.get("semantic", 0) <= 17 + 2 * 16


def test_a_buffer_keeps_its_pinned_beginning_and_what_readers_need() -> None:
    buffer = TokenBuffer(torch.arange(5))
    buffer.pin(3)
    buffer.release("a", 0)
    buffer.release("b", 0)
    for n in range(5, 20):
        buffer.append(torch.tensor([n]))
    buffer.release("a", 15)
    assert len(buffer) == buffer.tail.shape[-1] == 20
    buffer.release("b", 12)
    assert (len(buffer), buffer.tail.shape[-1]) == (20, 8)
    assert torch.equal(buffer.slice(13, 18), torch.arange(13, 18))
    assert torch.equal(buffer.slice(1, 3), torch.arange(1, 3))
    with pytest.raises(IndexError):
        buffer.slice(2, 5)
