"""`continue` and `generate` with one language model over Mimi's codes, as with bundles of three stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import audiolm_cli
from audiolm_cli import models, native, pipeline
from audiolm_cli.audio import files
from audiolm_cli.errors import UsageError
from audiolm_cli.language_models import engine
from audiolm_cli.mimi import codec
from audiolm_cli.mimi.model import MimiBackend
from audiolm_cli.mimi.run import quiet_codes
from audiolm_cli.provenance import watermark
from audiolm_cli.public.layout import CODEBOOK_SIZE
from audiolm_cli.request import ContinueRequest, GenerateRequest
from audiolm_cli.token_file import Tokens
from tests.helpers.sounds import tone
from tests.mimi.conftest import WINDOW

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
RATE, FRAME = 24000, 1920
needs_kernel = pytest.mark.skipif(not native.library("plain"), reason="the native kernel is not compiled here")


@pytest.fixture(params=["soda", "llama-mimi"])
def name(request: pytest.FixtureRequest, twins: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a twin."""
    monkeypatch.setenv("AUDIOLM_MIMI", str(twins / "mimi"))
    return str(twins / request.param)


@pytest.fixture
def bundle(name: str) -> MimiBackend:
    loaded = models.load(name, device="cpu", dtype="float32")
    assert isinstance(loaded, MimiBackend)
    return loaded


@pytest.fixture
def audiolm(audiolm: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AUDIOLM_MODEL", name)
    return lambda *arguments: audiolm(*arguments, "--device", "cpu")


def prompt(seconds: float = 1.0) -> pipeline.Prompt:
    sound = tone(seconds, RATE) * np.linspace(0.2, 1, round(seconds * RATE))
    return pipeline.Prompt(sound.astype(np.float32), seed=5)


def test_the_prompt_is_kept_and_codes_go_on_from_its_own(bundle: MimiBackend):
    (made,) = pipeline.continue_(bundle, ContinueRequest("-", duration=0.5), [prompt(1.01)])
    given = prompt(1.01).waveform
    assert len(made.waveform) == len(given) + RATE // 2
    assert np.array_equal(made.waveform[: len(given) - 480], given[:-480])
    codes, frames = made.codes, int(1.01 * RATE) // FRAME
    assert codes.shape == (bundle.layout.quantizers, frames + 7)
    assert torch.equal(made.semantic, codes[0])
    assert torch.equal(codes[:, :frames], bundle.tokenize(given[len(given) - frames * FRAME :])[1])
    assert codes.min() >= 0
    assert codes.max() < 2048


def test_results_depend_on_seed_and_sample_and_not_on_the_batch(bundle: MimiBackend):
    request, asked = ContinueRequest("-", duration=2), [(1.0, 0), (0.3, 0), (1.1, 1)]  # beyond the window
    prompts = [pipeline.Prompt(prompt(s).waveform, n, sample, seed=5) for n, (s, sample) in enumerate(asked)]
    together = list(pipeline.continue_(bundle, request, prompts, batch_size=4))
    for one, made in zip(prompts, together, strict=True):
        (alone,) = pipeline.continue_(bundle, request, [one], batch_size=4)
        assert torch.equal(alone.codes, made.codes)
        assert np.array_equal(alone.waveform, made.waveform)
    assert not torch.equal(together[0].codes[:, -5:], together[2].codes[:, -5:])


def test_long_outputs_slide_behind_an_anchor_at_linear_cost(bundle: MimiBackend, monkeypatch: pytest.MonkeyPatch):
    """The anchor is the loudest stretch of the prompt, which here is its end."""
    seen = []

    def start(model: Any, items: Any, *how: Any) -> Any:
        seen.extend(items)
        return real(model, items, *how)

    real = engine.start
    monkeypatch.setattr(engine, "start", start)
    (made,) = pipeline.continue_(bundle, ContinueRequest("-", duration=4), [prompt()])
    quantizers, header = bundle.layout.quantizers, len(bundle.layout.header)
    known, anchor = 12, WINDOW // 4
    assert made.codes.shape[1] == known + 50
    assert bundle.config.window == WINDOW
    assert all(len(item.sequence.ids) <= header + WINDOW * quantizers for item in seen)
    assert sum(len(item.uniform) for item in seen) == 50 * quantizers
    steps = [len(item.uniform) // quantizers for item in seen]
    assert steps[0] == WINDOW - known
    assert set(steps[1:-1]) == {(WINDOW - anchor + 1) // 2}
    waveform = prompt().waveform
    first, end = pipeline.spoken_stretch(waveform[len(waveform) - known * FRAME :], bundle.config.tokens, 7 / 12.5)
    kept = made.codes[:, first:end]
    for item in seen[1:]:
        ids = item.sequence.ids[header : header + kept.numel()].view(-1, quantizers).T
        assert torch.equal(ids % 2048, kept)


def test_what_is_made_from_nothing_begins_behind_the_header(bundle: MimiBackend):
    made = list(pipeline.generate(bundle, GenerateRequest(duration=0.4, seed=1, num_samples=2)))
    assert [len(output.waveform) for output in made] == [round(0.4 * RATE)] * 2
    assert not np.array_equal(made[0].waveform, made[1].waveform)
    assert made[0].stage_tokens["codes"] == 2 * 5 * bundle.layout.quantizers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_kernel)])
def test_a_stream_has_the_samples_of_the_whole_in_pieces(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """Beyond the model's window, and piece by piece."""
    monkeypatch.setattr(codec, "PIECE_SECONDS", 1)
    bundle, request = models.load(name, device="cpu", dtype=dtype), ContinueRequest("-", duration=5)
    prompts = [prompt(1.0), prompt(0.4)]
    wholes = list(pipeline.continue_(bundle, request, prompts, batch_size=2))
    for given, whole in zip(prompts, wholes, strict=True):
        stream = pipeline.stream(bundle, request, given, batch_size=2)
        chunks = list(stream)
        streamed = stream.output(chunks)
        assert len(chunks) > 4
        assert np.array_equal(streamed.waveform, whole.waveform)
        assert torch.equal(streamed.codes, whole.codes)
        assert torch.equal(streamed.semantic, whole.codes[0])


def test_without_end_it_goes_on_as_with_one(bundle: MimiBackend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "PIECE_SECONDS", 1)
    (whole,) = pipeline.generate(bundle, GenerateRequest(duration=7, seed=1))
    endless = iter(pipeline.stream(bundle, GenerateRequest(duration=math.inf, seed=1)))
    codes = torch.cat([next(endless).codes for _ in range(7)], 1)
    assert torch.equal(codes, whole.codes[:, : codes.shape[1]])


def test_python_loads_it_and_says_what_it_cannot(name: str, bundle: MimiBackend):
    model, given = audiolm_cli.load(name, device="cpu", dtype="float32"), prompt().waveform
    result = model.continue_(given, RATE, duration=0.4, seed=5, no_watermark=True)
    (made,) = pipeline.continue_(bundle, ContinueRequest("-", duration=0.4, seed=5), [prompt()])
    assert np.array_equal(result.waveform, made.waveform)
    marked = np.concatenate(list(model.stream(duration=0.4, seed=1)))
    assert np.array_equal(marked, model.generate(duration=0.4, seed=1).waveform)
    for command in ("resynth", "encode", "detect"):
        with pytest.raises(UsageError, match=f"^{command}: .* needs a bundle of three stages$"):
            getattr(model, command)(given, RATE)
    with pytest.raises(UsageError, match=r"^resynth: .* needs a bundle of three stages$"):
        model.stream(given, RATE, resynth=True)
    with pytest.raises(UsageError, match=r"^decode: .* needs a bundle of three stages$"):
        model.decode(Tokens(result.semantic, result.codes))


def test_behind_the_longest_pause_it_samples_hotter(bundle: MimiBackend):
    """All codes are made to stand for silence, so the pause begins with the prompt."""
    bundle.__dict__["quiet_codes"] = frozenset(range(CODEBOOK_SIZE))
    prompts, rate = [prompt(1.0), prompt(0.4)], bundle.config.tokens.semantic_rate
    free = list(pipeline.continue_(bundle, ContinueRequest("-", duration=4, seed=3), prompts))
    limit = ContinueRequest("-", duration=4, seed=3, max_pause=2)
    held = list(pipeline.continue_(bundle, limit, prompts))
    for a, b in zip(free, held, strict=True):
        same = (a.codes == b.codes).all(0)
        assert int(same.int().argmin()) == round(2 * rate) + 1  # frames, of prompt and continuation
    (alone,) = pipeline.continue_(bundle, limit, prompts[1:])
    assert torch.equal(alone.codes, held[1].codes)
    chunks = list(pipeline.stream(bundle, limit, prompts[0]))
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks], 1), held[0].codes)


def test_quiet_sounds_tell_which_codes_stand_for_silence(bundle: MimiBackend):
    silence = set(bundle.tokenize(np.zeros(RATE, np.float32))[0].tolist())
    assert silence <= bundle.quiet_codes
    assert len(bundle.quiet_codes) < CODEBOOK_SIZE / 2
    spec = bundle.config.tokens
    sounds = np.concatenate([prompt(0.8).waveform, 1e-4 * prompt(0.8).waveform])
    codes = torch.tensor([1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 1, 7, 7, 8, 8, 8])
    assert quiet_codes(sounds, codes, spec) == {7, 8, 9}  # 1 is also that of a loud frame
    assert quiet_codes(sounds, codes[:0], spec) == frozenset()
    assert quiet_codes(sounds[: len(sounds) // 2], codes[:10], spec) == frozenset()


def test_the_defaults_are_those_of_the_family(bundle: MimiBackend, name: str):
    stage = GenerateRequest(duration=1).sampling(bundle.config.sampling).stage("semantic")
    expected = (1.0, 0, 0.9) if name.endswith("soda") else (0.8, 30, 1.0)
    assert (stage.temperature, stage.top_k, stage.top_p) == expected


def test_the_command_line_marks_names_and_repeats(audiolm: Any, name: str, tmp_path: Path):
    soundfile.write("in.wav", prompt().waveform, RATE)
    arguments = ("continue", "in.wav", "--duration", "2.2", "--seed", "7", "--json", "-q")
    code, out, err = audiolm(*arguments, "-o", "a.wav")
    assert code == 0, err
    record = json.loads(out)
    assert record["model"] == Path(name).name
    assert record["new_seconds"] == 2.2
    assert set(record["stages"]) == {"tokenize", "codes", "decode"}
    assert "revision" not in record
    assert audiolm(*arguments, "-o", "b.wav")[0] == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    recording = files.read("a.wav", watermark.RATE)
    comment = json.loads(recording.tags["comment"])
    assert (comment["bundle"], comment["identity"], comment["seed"]) == (Path(name).name, record["identity"], 7)
    bundle = watermark.bundle_id(Path(name).name)
    assert watermark.bits(bundle) == record["watermark_bits"]
    assert bundle in [mark.bundle for mark in watermark.find(recording.samples)]


def test_standard_output_has_the_file_that_a_name_gets(name: str, tmp_path: Path, capfdbinary: Any):
    from audiolm_cli.command_line import cli

    arguments = ["generate", "-m", name, "--device", "cpu", "--duration", "0.4", "--seed", "1", "-q", "-o"]
    assert cli.main([*arguments, str(tmp_path / "a.wav")]) == 0
    capfdbinary.readouterr()
    assert cli.main([*arguments, "-"]) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "a.wav").read_bytes()


def test_a_job_list_makes_what_single_commands_make(audiolm: Any):
    soundfile.write("in.wav", prompt().waveform, RATE)
    jobs = [{"input": "in.wav", "output": f"{n}.wav", "duration": 0.4, "seed": 3, "num-samples": n} for n in (1, 2)]
    Path("jobs").write_text("\n".join(map(json.dumps, jobs)))
    code, out, err = audiolm("continue", "--jobs", "jobs", "-q")
    assert (code, out.split()) == (0, ["1.wav", "2.0.wav", "2.1.wav"]), err
    assert audiolm("continue", "in.wav", "-o", "again.wav", "--duration", "0.4", "--seed", "3")[0] == 0
    assert Path("again.wav").read_bytes() == Path("1.wav").read_bytes()


def test_a_picture_of_codes(audiolm: Any):
    pytest.importorskip("matplotlib")
    assert audiolm("generate", "-o", "a.wav", "--duration", "0.4", "--plot", "a.png", "--seed", "1")[0] == 0
    assert Path("a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--best-of 4", "--best-of: "),
        ("--until-end", "--until-end: "),
        ("--guidance 2", "--guidance: "),
        ("--prompt-guidance 2", "--prompt-guidance: "),
        ("--temperature 1,2,1", "--temperature: "),
        ("--top-p 0.1,0.2,0.3", "--top-p: "),
        ("--prompt-seconds 2", "--prompt-seconds: "),
        ("--duration 0.01", "--duration: must be at least 0.08 seconds"),
    ],
)
def test_what_needs_three_stages_is_refused(audiolm: Any, options: str, says: str):
    soundfile.write("in.wav", prompt().waveform, RATE)
    code, _, err = audiolm("continue", "in.wav", "-o", "a.wav", "--seed", "1", "-q", *options.split())
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not Path("a.wav").exists()


@pytest.mark.parametrize("command", ["resynth", "encode", "decode", "score", "detect"])
def test_commands_that_it_cannot_serve_say_so_before_anything_loads(
    audiolm: Any, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "load", None)
    soundfile.write("in.wav", prompt().waveform, RATE)
    output = {"resynth": ["-o", "a.wav", "--seed", "1"], "encode": ["-o", "a.safetensors"], "decode": ["-o", "a.wav"]}
    code, out, err = audiolm(command, "in.wav", *output.get(command, []), "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"error: {command}: " in err
    assert "needs a bundle of three stages" in err


def test_python_code_is_refused_as_well(bundle: MimiBackend):
    with pytest.raises(UsageError, match=r"^best-of: "):
        list(pipeline.continue_(bundle, ContinueRequest("-", best_of=2), [prompt()]))


def test_models_show_and_verify_know_it(audiolm: Any, name: str):
    from audiolm_cli.command_line import cli

    assert cli.main(["models", "verify", name]) == 0
    assert cli.main(["models", "show", name, "--json"]) == 0


def test_without_transformers_one_line_says_what_to_install(audiolm: Any, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = audiolm("generate", "-o", "a.wav", "--seed", "1", "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'audiolm[mimi]'" in err
