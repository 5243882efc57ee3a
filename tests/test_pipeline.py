"""From prompt to output with a tiny random bundle: lengths, joins, seeds, batches, windows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiolm_cli import native, pipeline
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle
from audiolm_cli.config import BundleConfig, Layout, StageSampling, preset
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.fields import from_json, to_json
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.pipeline import Prompt
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from tests.helpers.bundles import in_memory, modules, with_short_windows, write_bundle
from tests.helpers.continuing import SAMPLING, run
from tests.helpers.sounds import noise


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return with_short_windows(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("duration", [0.04, 0.5, 0.51237, 2.2])
def test_the_duration_asked_for_is_the_duration_got(tiny: bundle.Bundle, duration: float) -> None:
    prompt = noise(1.013)
    (result,) = run(tiny, [Prompt(prompt)], duration=duration)
    assert len(result.waveform) == len(prompt) + round(16000 * duration)
    assert result.prompt_samples == len(prompt)
    assert np.isfinite(result.waveform).all()


def test_the_prompt_stays_as_it_was_up_to_the_crossfade(tiny: bundle.Bundle) -> None:
    prompt = noise(1.5)
    (result,) = run(tiny, [Prompt(prompt)])
    assert np.array_equal(result.waveform[: len(prompt) - 320], prompt[:-320])
    assert not np.array_equal(result.waveform[len(prompt) - 320 : len(prompt)], prompt[-320:])


def test_same_seed_same_samples_another_seed_other_content(tiny: bundle.Bundle) -> None:
    first, again, other = (run(tiny, [Prompt(noise(1), seed=seed)])[0].waveform for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("layout", ["frames", "plain"])
def test_guidance_changes_coarse_codes_where_there_is_something_to_hold_on_to(tmp_path: Path, layout: Layout) -> None:
    config = preset("tiny")
    coarse = dataclasses.replace(config.coarse, window_seconds=1.0, layout=layout)
    folder = write_bundle(tmp_path / "tiny", dataclasses.replace(config, coarse=coarse))
    loaded = bundle.load(str(folder), device="cpu", dtype="float32")
    free, held = (run(loaded, [Prompt(noise(1))], guidance=guidance)[0] for guidance in (0, 2))
    assert torch.equal(free.semantic, held.semantic)
    assert not torch.equal(free.codes[:4], held.codes[:4])
    requests = [GenerateRequest(duration=1.5, **SAMPLING | {"guidance": guidance}) for guidance in (0, 2)]
    free, held = (next(pipeline.generate(loaded, request)) for request in requests)
    window = 50  # frames: before them there is nothing to hold on to
    assert torch.equal(free.codes[:4, :window], held.codes[:4, :window])
    assert not torch.equal(free.codes[:4, window:], held.codes[:4, window:])
    loaded.config = dataclasses.replace(loaded.config, guide_weights=(0.0, 1.0))
    free, held = (next(pipeline.generate(loaded, request)) for request in requests)
    assert torch.equal(free.codes[:4, :window], held.codes[:4, :window]) == (layout == "plain")  # to tokens, as below
    free, held = (
        next(pipeline.resynth(loaded, ResynthRequest(**SAMPLING | {"guidance": guidance}), [Prompt(noise(0.6))]))
        for guidance in (0, 2)
    )  # semantic tokens alone, to which only one of the layouts can hold on
    assert torch.equal(free.codes[:4], held.codes[:4]) == (layout == "plain")


def test_a_bundle_as_the_paper_has_it_for_piano(tmp_path: Path) -> None:
    """AudioLM, section IV-E: three quantizers of 2^14 codes each, all of them the coarse stage's; no fine stage."""
    config = preset("tiny")
    tokens = dataclasses.replace(config.tokens, quantizers=3, coarse=3, codebook_size=1 << 14)
    for layout in ("frames", "plain"):
        coarse = dataclasses.replace(config.coarse, layout=layout)
        paper = dataclasses.replace(config, tokens=tokens, coarse=coarse, fine=None)
        loaded = bundle.load(str(write_bundle(tmp_path / layout, paper)), device="cpu", dtype="float32")
        assert loaded.fine is None
        (output,) = run(loaded, [Prompt(noise(1))])
        assert output.codes.shape == (3, 60)
        assert output.codes.max() > 1024
        assert len(output.waveform) == round(1.4 * 16000)


def test_results_do_not_depend_on_the_batch(tiny: bundle.Bundle) -> None:
    prompts = [Prompt(noise(seconds, n), n) for n, seconds in enumerate((1.0, 0.3, 2.0, 0.7))]
    together = run(tiny, prompts, duration=0.6)  # with up to 0.8 s of prompt more than a window
    alone = [run(tiny, [prompt], duration=0.6)[0] for prompt in prompts]
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.waveform, b.waveform)


def test_samples_of_one_prompt_are_as_if_alone(tiny: bundle.Bundle) -> None:
    """Although what they begin with is computed once."""
    for seconds in (1.0, 0.04, 3.0):  # no more of it than the decoder looks ahead, all of it, its end
        prompts = [Prompt(noise(seconds), 0, n, seed=7) for n in range(3)]
        shared = [Prompt(prompts[0].waveform, 0, n, seed=7) for n in range(3)]
        results = run(tiny, shared, duration=0.6)
        alone = [run(tiny, [prompt], duration=0.6)[0] for prompt in prompts]
        assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(results, alone, strict=True))
        assert not np.array_equal(results[0].waveform, results[1].waveform)


def test_the_tokens_of_an_output_render_it(tiny: bundle.Bundle) -> None:
    prompt = noise(1.5)
    (result,) = run(tiny, [Prompt(prompt)])
    assert result.tokens_start == 24000 - 20 * 640
    decoded = tiny.codec.decode(result.codes[None])[0].numpy()
    decoded = postfilter.chain(tiny.config.output, 16000, prompt[-20 * 640 :], 20 * 640).whole(decoded)
    assert np.abs(decoded[20 * 640 :][:6400] - result.waveform[24000:]).max() < 1e-6  # cut into other pieces
    assert len(result.semantic) * 2 == result.codes.shape[1]


def test_samples_of_one_prompt_differ(tiny: bundle.Bundle) -> None:
    prompt = noise(1)
    results = run(tiny, [Prompt(prompt, 0, n) for n in range(3)])
    assert len({r.waveform.tobytes() for r in results}) == 3


@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_until_the_end_stops_where_the_model_would_whatever_is_in_the_batch(
    tiny: bundle.Bundle, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a window; with random weights `<end>` is as likely as any token."""
    if kernel == "native" and not native.library("plain"):
        pytest.skip("the native kernel is not compiled here")
    monkeypatch.setenv("AUDIOLM_KERNEL", kernel)
    loaded = bundle.load(str(tiny.folder), device="cpu", dtype="float32")
    prompts = [Prompt(noise(1), n) for n in range(6)]
    made = run(loaded, prompts, duration=2.2, until_end=True)
    new = [len(output.waveform) - 16000 for output in made]
    assert all(640 <= samples <= 35200 for samples in new)
    assert len(set(new)) > 3
    assert [output.codes.shape[1] for output in made] == [2 * len(output.semantic) for output in made]
    assert all(output.semantic.max() < 16 for output in made)
    (alone,) = run(loaded, [prompts[4]], duration=2.2, until_end=True, batch_size=1)
    assert torch.equal(alone.semantic, made[4].semantic)
    assert np.array_equal(alone.waveform, made[4].waveform) or kernel == "torch"  # whose rows depend on the batch size
    short = next(n for n, output in enumerate(made) if new[n] < 12000)  # within the first window
    said, source, sampling = made[short].semantic, [stages.Noise(0, short, 0)], StageSampling(1.0, 0, 0.95)
    (again,) = stages.continue_semantic(
        loaded.semantic, [said[:21]], [40], stages.StageContext(source, sampling, 1), until_end=True
    )
    assert torch.equal(again, said)
    free = list(pipeline.generate(loaded, GenerateRequest(duration=2, until_end=True, num_samples=4, **SAMPLING)))
    assert len({len(output.waveform) for output in free}) > 1
    assert min(len(output.waveform) for output in free) >= 640
    with pytest.raises(UsageError, match="exclude each other"):
        ContinueRequest(until_end=True, best_of=2)


def test_last_tokens_of_a_prompt_are_kept_or_made_anew(tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    lookahead = tiny.config.tokenizer.lookahead
    known = pipeline.encode(tiny, postfilter.without_rumble(noise(1)[-12800:], 16000, 70.0)).semantic
    (anew,), (half,), (kept,) = (run(tiny, [Prompt(noise(1))], resampled_tokens=count) for count in (99, 1, 0))
    assert torch.equal(kept.semantic[:20], known)
    assert torch.equal(anew.semantic[: 20 - lookahead], known[:-lookahead])
    assert not torch.equal(anew.semantic[:20], known)
    assert lookahead > 1
    assert torch.equal(half.semantic[:19], known[:-1])
    assert not torch.equal(half.semantic[:20], known)
    assert len(kept.waveform) == len(anew.waveform)
    monkeypatch.setattr(tiny, "config", dataclasses.replace(tiny.config, resampled_tokens=0))
    assert torch.equal(run(tiny, [Prompt(noise(1))])[0].semantic, kept.semantic)


@pytest.mark.parametrize("samples", [640, 641, 700, 2000])
def test_very_short_prompts_are_continued(tiny: bundle.Bundle, samples: int) -> None:
    (result,) = run(tiny, [Prompt(noise(1)[:samples])])
    assert len(result.waveform) == samples + 6400


def test_a_prompt_shorter_than_a_token_is_refused(tiny: bundle.Bundle) -> None:
    with pytest.raises(InputError, match="40 ms"):
        run(tiny, [Prompt(noise(1)[:639])])


def test_silence_is_continued(tiny: bundle.Bundle) -> None:
    (result,) = run(tiny, [Prompt(np.zeros(16000, np.float32))])
    assert np.isfinite(result.waveform).all()


def test_progress_reaches_the_total_of_every_stage(tiny: bundle.Bundle) -> None:
    seen: dict[str, tuple[int, int]] = {}
    run(tiny, [Prompt(noise(1))], progress=lambda stage, done, total: seen.update({stage: (done, total)}))
    assert set(seen) == {"tokenize", "semantic", "coarse", "fine", "decode"}
    assert all(done == total > 0 for done, total in seen.values())
    assert seen["tokenize"] == (20, 20)  # 0.8 s of prompt
    assert seen["decode"] == (60, 60)  # frames, of prompt and continuation


AGAIN = ResynthRequest(**SAMPLING)


def test_generation_from_nothing(tiny: bundle.Bundle) -> None:
    request = GenerateRequest(duration=1.50001, num_samples=3, **SAMPLING)
    results = list(pipeline.generate(tiny, request, batch_size=2))
    assert [len(r.waveform) for r in results] == [24000] * 3
    assert len({r.waveform.tobytes() for r in results}) == 3
    assert all(r.prompt_samples == 0 for r in results)
    assert results[0].stage_tokens["semantic"] == 2 * 38
    assert (results[0].semantic.shape, results[0].codes.shape) == ((38,), (12, 76))
    (alone,) = pipeline.generate(tiny, request, [Prompt(sample=2)], batch_size=2)
    assert np.array_equal(alone.waveform, results[2].waveform)


def test_a_request_alone_says_what_goes_in(tiny: bundle.Bundle, tmp_path: Path) -> None:
    """A bundle, a request, outputs: three lines of Python, as the command line makes them."""
    for n, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(tmp_path / name, noise(1, n), 16000, "FLOAT")
    request = ContinueRequest(tmp_path / "a.wav", duration=0.4, num_samples=2, seed=3)  # type: ignore[arg-type]
    first, second = pipeline.continue_(tiny, request)
    for sample, made in enumerate((first, second)):
        (again,) = pipeline.continue_(tiny, request, [Prompt(noise(1), sample=sample)])
        assert np.array_equal(made.waveform, again.waveform)
    assert not np.array_equal(first.waveform, second.waveform)
    asked = ResynthRequest(str(tmp_path / "a.wav"), speaker=str(tmp_path / "b.wav"), seed=3)
    (said,) = pipeline.resynth(tiny, asked)
    (again,) = pipeline.resynth(tiny, asked, [Prompt(noise(1))], speaker=noise(1, 1))
    assert np.array_equal(said.waveform, again.waveform)


def test_a_seed_of_its_own_counts_before_the_requests(tiny: bundle.Bundle) -> None:
    one, other, own = (
        run(tiny, [Prompt(noise(1), seed=key)], seed=seed)[0].waveform for key, seed in ((None, 1), (None, 2), (1, 2))
    )
    assert np.array_equal(one, own)
    assert not np.array_equal(one, other)


def test_what_a_bundle_cannot_do_is_refused(tiny: bundle.Bundle) -> None:
    with pytest.raises(UsageError, match="duration: must be at least"):
        next(pipeline.generate(tiny, GenerateRequest(duration=0.01)))


def test_resynthesis_keeps_length_and_content_and_changes_the_voice(
    tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a window; what goes into stage 2 is seen from inside."""
    seen = []
    made = FrameTransformer.sequence

    def watched(*arguments: Any) -> Any:
        seen.append(arguments)
        return made(*arguments)

    monkeypatch.setattr(FrameTransformer, "sequence", watched)
    source, speaker = noise(2.30001), noise(0.5, 1)
    (result,) = pipeline.resynth(tiny, AGAIN, [Prompt(source)], speaker=speaker)
    assert len(result.waveform) == len(source)
    clean = [postfilter.without_rumble(sound, 16000, 70.0) for sound in (source, speaker)]
    semantic, reference = pipeline.encode(tiny, clean[0]).semantic, pipeline.encode(tiny, clean[1][: 12 * 640])
    assert len(seen) > 2
    for _, tokens, codes, voice in seen:
        assert torch.equal(voice[0], reference.semantic)
        assert torch.equal(voice[1], reference.codes[:4])
        assert any(torch.equal(tokens, part) for part in semantic.unfold(0, len(tokens), 1))
        assert codes.shape[1] == 2 * len(tokens)
    (sampled,) = pipeline.resynth(tiny, AGAIN, [Prompt(source)])
    assert len(sampled.waveform) == len(source)
    assert not np.array_equal(sampled.waveform, result.waveform)
    seen.clear()
    monkeypatch.setattr(tiny, "config", dataclasses.replace(tiny.config, reference_gap=False))
    (joined,) = pipeline.resynth(tiny, AGAIN, [Prompt(source)], speaker=speaker)
    assert len(joined.waveform) == len(source)
    assert not np.array_equal(joined.waveform, result.waveform)
    _, tokens, codes = seen[0]  # without a voice apart
    assert torch.equal(tokens[:12], reference.semantic)
    assert torch.equal(codes[:, :24], reference.codes[:4])
    assert len(seen[-1]) == 4


def test_the_reference_is_where_speech_is_and_ends_in_a_pause() -> None:
    spec = preset("tiny").tokens
    quiet = 0.01 * noise(2.0)
    spoken = np.concatenate([quiet, noise(4.2), 0.01 * noise(0.4), noise(2.0), quiet])
    first, end = pipeline.spoken_stretch(spoken, spec, 4.0)
    assert end - first == 100
    assert 6.2 * 25 < end <= 6.2 * 25 + 2  # the first token of the pause
    assert np.array_equal(pipeline.reference_stretch(spoken, spec), spoken[first * 640 : end * 640])


def test_a_reference_no_longer_than_the_stretch_is_taken_whole() -> None:
    spec = preset("tiny").tokens
    paused = np.concatenate([noise(1.8), 0.01 * noise(0.2), noise(1.0)])
    assert len(pipeline.reference_stretch(paused, spec)) == len(paused)
    assert len(pipeline.reference_stretch(noise(0.5), spec)) == 12 * 640
    assert len(pipeline.reference_stretch(np.zeros(1000, np.float32), spec)) == 640
    with pytest.raises(InputError, match="40 ms"):
        pipeline.reference_stretch(noise(0.03), spec)


@pytest.mark.parametrize("quantizers", [3, 12])
def test_a_bundle_without_a_fine_stage(tmp_path: Path, quantizers: int) -> None:
    """Recordings are encoded with all quantizers of the codec, outputs have those of stage 2."""
    config = preset("tiny")
    tokens = dataclasses.replace(config.tokens, quantizers=quantizers, coarse=3)
    config = dataclasses.replace(config, tokens=tokens, fine=None)
    loaded = bundle.load(str(write_bundle(tmp_path / "coarse-only", config)), device="cpu", dtype="float32")
    (result,) = run(loaded, [Prompt(noise(0.5))])
    assert len(result.waveform) == 8000 + 6400
    assert "fine" not in result.stage_tokens
    (resynthesis,) = pipeline.resynth(loaded, ResynthRequest(**SAMPLING), [Prompt(noise(0.6))])
    (made,) = pipeline.generate(loaded, GenerateRequest(duration=0.4, **SAMPLING))
    assert [len(o.codes) for o in (result, resynthesis, made)] == [3, 3, 3]
    assert result.codes.shape[1] == 2 * len(result.semantic)
    assert len(pipeline.encode(loaded, noise(0.5)).codes) == quantizers
    prompt = Prompt(noise(0.5))
    streamed = pipeline.stream(loaded, ContinueRequest(duration=0.4, **SAMPLING), prompt)
    assert np.array_equal(np.concatenate([chunk.waveform for chunk in streamed]), result.waveform)


def test_the_plain_layout_of_the_paper(tmp_path: Path) -> None:
    config = preset("tiny")
    plain = {
        name: dataclasses.replace(getattr(config, name), layout="plain") for name in ("semantic", "coarse", "fine")
    }
    loaded = bundle.load(
        str(write_bundle(tmp_path / "plain", dataclasses.replace(config, **plain))), device="cpu", dtype="float32"
    )
    (result,) = run(loaded, [Prompt(noise(0.5))])
    assert len(result.waveform) == 8000 + 6400


@pytest.mark.slow
def test_the_papers_sizes_build_and_generate() -> None:
    """In memory: writing and reading its gigabytes is not what is tested here."""
    config = from_json(BundleConfig, json.loads(json.dumps(to_json(preset("paper")))))
    loaded = in_memory(config, modules(config), torch.bfloat16)
    assert sum(p.numel() for p in loaded.coarse.blocks.parameters()) == pytest.approx(151e6, rel=0.01)
    (result,) = run(loaded, [Prompt(noise(0.04))], duration=0.04)
    assert len(result.waveform) == 640 + 640
