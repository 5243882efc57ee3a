"""The command line with the models replaced by a stand-in; the real ones are in test_pipeline.py and test_wheel.py."""

import dataclasses
import json
import math
import os
import subprocess

import numpy as np
import pytest
import soundfile

from audiolm_cli.command_line import cli
from audiolm_cli.config import Sampling
from audiolm_cli.errors import ModelError
from audiolm_cli.request import AUDIO
from tests.helpers import fakes
from tests.helpers.processes import spawn
from tests.helpers.sounds import tone

REST = "; the same command with --skip-existing --seed 1 makes the rest"

pytestmark = pytest.mark.usefixtures("fake")


def test_continue_writes_prompt_and_new_audio(audiolm, prompt, fake):
    code, out, err = audiolm("continue", prompt, "-o", "out.wav", "--duration", "2", "--seed", "5", "--no-watermark")
    assert (code, out) == (0, "out.wav\n")
    assert "audiolm: seed 5\n" in err
    samples, rate = soundfile.read("out.wav")
    assert (rate, len(samples)) == (16000, 3 * 16000)
    assert np.abs(samples[:16000] - tone(1.0)).max() < 2**-15
    assert (samples[16000:] == 0.25).all()
    assert fake.loads == [("speech", "auto", "auto")]


def test_options_reach_the_pipeline(audiolm, prompt, fake):
    code, _, _ = audiolm(
        *("continue", prompt, "-o", "out.wav", "--duration", "1.5", "--prompt-seconds", "0.5", "--seed", "7"),
        *("--temperature", "0.5", "--top-k", "10,0,3", "--batch-size", "2", "--num-samples", "3"),
        *("--model", "mine", "--device", "cpu", "--dtype", "float32"),
    )
    assert code == 0
    assert fake.loads == [("mine", "cpu", "float32")]
    assert [len(call["prompts"]) for call in fake.calls] == [2, 1]
    assert [prompt.sample for call in fake.calls for prompt in call["prompts"]] == [0, 1, 2]
    for call in fake.calls:
        request = call["request"]
        assert (request.duration, request.prompt_seconds, call["batch_size"]) == (1.5, 0.5, 2)
        assert {prompt.seed for prompt in call["prompts"]} == {7}
        sampling = request.sampling(Sampling(guidance=2.0))
        assert sampling.temperature == (0.5, 0.5, 0.5)
        assert sampling.top_k == (10, 0, 3)
        assert sampling.top_p == (0.95, 0.95, 0.95)  # the bundle's, as guidance is
        assert sampling.guidance == 2


def test_the_bundle_says_how_much_of_a_prompt_counts(audiolm, prompt, fake):
    audiolm("continue", prompt, "-o", "out.wav")
    assert fake.calls[0]["request"].prompt_seconds is None
    assert json.loads(soundfile.SoundFile("out.wav").comment)["options"]["prompt_seconds"] == 3


@pytest.mark.parametrize(("surprise", "said"), [(8.1, True), (7.9, False), (None, False)])
def test_a_prompt_that_the_bundle_does_not_know_is_said(audiolm, prompt, fake, surprise, said):
    fake.surprise, fake.unfamiliar = surprise, "8.1 bits a token" if said else ""
    code, out, err = audiolm("continue", prompt, "-o", "out.wav", "--json")
    assert code == 0
    assert ("unlike what the bundle speech was trained on (8.1 bits" in err) == said
    record = json.loads(out)
    assert (record["surprise"], record["unfamiliar"]) == (surprise, said)
    assert "unlike" not in audiolm("continue", prompt, "-o", "out.wav", "-f", "-q")[2]
    assert audiolm("continue", prompt, "-o", "a.wav", "-n", "3")[2].count("unlike") == said  # once for all samples


def test_zero_is_not_mistaken_for_a_default(audiolm, prompt, fake):
    audiolm("continue", prompt, "-o", "a.wav", "--temperature", "0", "--top-k", "0", "--seed", "0", "--guidance", "0")
    sampling = fake.calls[0]["request"].sampling(Sampling(guidance=2.0))
    assert (sampling.temperature, sampling.guidance) == ((0, 0, 0), 0)
    assert fake.calls[0]["prompts"][0].seed == 0


def test_the_model_comes_from_the_environment(audiolm, prompt, fake, monkeypatch):
    monkeypatch.setenv("AUDIOLM_MODEL", "elsewhere")
    audiolm("continue", prompt, "-o", "out.wav")
    assert fake.loads[0][0] == "elsewhere"


def test_a_random_seed_is_printed_and_recorded(audiolm, prompt):
    seeds = []
    for name in ("a.wav", "b.wav"):
        _, _, err = audiolm("continue", prompt, "-o", name)
        with soundfile.SoundFile(name) as file:
            seeds.append(json.loads(file.comment)["seed"])
        assert f"seed {seeds[-1]}\n" in err
    assert seeds[0] != seeds[1]
    _, out, err = audiolm("continue", prompt, "-o", "c.wav", "-q", "--json")
    assert (type(json.loads(out)["seed"]), err) == (int, "")


@pytest.mark.parametrize("suffix", AUDIO)
def test_tags_say_what_made_a_file(audiolm, prompt, suffix):
    audiolm("continue", prompt, "-o", f"a{suffix}", "--seed", 2**63 - 1, "--temperature", "0.123456789", "--threads", 2)
    with soundfile.SoundFile(f"a{suffix}") as file:
        assert file.software.startswith(f"audiolm {cli.__version__}")
        comment = file.comment
    assert comment.isascii()
    assert len(comment) < 1000
    record = json.loads(comment)
    assert record["bundle"] == "speech"
    assert record["identity"] == "0123456789abcdef"
    assert record["seed"] == 2**63 - 1
    assert record["prompt_samples"] == 16000
    assert record["digitalSourceType"] == "trainedAlgorithmicMedia"
    assert record["options"]["temperature"] == [0.123456789] * 3


def test_a_format_that_cannot_be_written_here_is_refused_before_a_model_is_loaded(audiolm, prompt, fake, monkeypatch):
    monkeypatch.setattr("soundfile.check_format", lambda container, subtype: container != "MP3")
    code, out, err = audiolm("continue", prompt, "--out-dir", "o", "--name", "{stem}.MP3")
    assert (code, out, fake.loads, os.path.exists("o")) == (2, "", [], False)
    assert err.startswith("audiolm: error: .mp3: libsndfile ")
    assert len(err.splitlines()) == 1


def test_json_has_one_object_for_each_output(audiolm, prompt):
    code, out, _ = audiolm("continue", prompt, "-o", "a.wav", "--num-samples", "2", "--json", "--seed", "1")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["path"] for record in records] == ["a.0.wav", "a.1.wav"]
    assert records[1] == {
        "path": "a.1.wav",
        "source": str(prompt),
        "model": "speech",
        "identity": "0123456789abcdef",
        "seed": 1,
        "position": 0,
        "sample": 1,
        "watermark_bits": "01000001",
        "prompt_seconds": 1.0,
        "new_seconds": 7.0,
        "seconds": 8.0,
        "batch": 2,
        "kernel": "native",
        "stages": {
            "semantic": {"seconds": 0.5, "tokens": 25, "tokens_per_second": 50.0},
            "decode": {"seconds": 0.1, "tokens": 50, "tokens_per_second": 500.0},
        },
        "real_time_factor": pytest.approx(0.6 / 7 / 2),
        "peak": pytest.approx(0.3, abs=0.05),
        "clipped": 0,
        "surprise": None,
        "unfamiliar": False,
        "unfamiliar_reason": None,
        "candidates": None,
        "candidate": None,
    }


def test_the_best_of_several_candidates(audiolm, prompt, fake, tmp_path):
    base = ("continue", prompt, "--seed", "1", "--no-watermark", "--json")
    code, out, _ = audiolm(*base, "-o", "a.wav", "--best-of", "3")
    record = json.loads(out)
    assert (code, record["candidates"], record["candidate"]) == (0, [0.0, -0.25, -0.5], 0)
    assert fake.calls[-1]["request"].best_of == 3
    assert json.loads(soundfile.SoundFile("a.wav").comment)["options"]["best_of"] == 3
    lines = [{"input": str(prompt), "output": "b.wav", "best-of": 2}, {"input": str(prompt), "output": "c.wav"}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert audiolm("continue", "--jobs", "jobs.jsonl", "--best-of", "4", "--seed", "1")[0] == 0
    assert [call["request"].best_of for call in fake.calls[-2:]] == [2, 4]


def test_the_longest_pause(audiolm, prompt, fake, tmp_path, monkeypatch):
    base = ("continue", "--seed", "1", "-q")
    refused = audiolm(*base, prompt, "-o", "a.wav", "--max-pause", "1")
    assert refused == (2, "", "audiolm: error: --max-pause: speech has no list of the tokens that stand for silence\n")
    quiet = dataclasses.replace(fakes.CONFIG, pause_tokens=(1,), max_pause=1.5)
    monkeypatch.setattr(fakes, "CONFIG", quiet)
    lines = [{"input": str(prompt), "output": f"{n}.wav"} for n in range(3)]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, [lines[0] | {"max-pause": "inf"}, *lines[1:]])))
    assert audiolm(*base, "--jobs", "jobs.jsonl", "--max-pause", "0.5")[0] == 0
    assert [call["request"].max_pause for call in fake.calls] == [math.inf, 0.5]
    assert audiolm(*base, prompt, "-o", "3.wav")[0] == 0  # the bundle's default
    made_with = [json.loads(soundfile.SoundFile(f"{n}.wav").comment)["options"] for n in range(4)]
    assert [options.get("max_pause") for options in made_with] == [None, 0.5, 0.5, 1.5]
    refused = audiolm(*base, prompt, "-o", "a.wav", "--max-pause", "1", "--temperature", "0")
    assert refused[0] == 2
    assert "--max-pause: samples hotter in a pause" in refused[2]
    refused = audiolm("resynth", prompt, "-o", "a.wav", "--max-pause", "1")
    assert refused == (2, "", "audiolm: error: No such option: --max-pause\n")


def test_the_best_of_one_is_what_it_was(audiolm, prompt):
    for name, options in (("a.wav", ()), ("b.wav", ("--best-of", "1"))):
        assert audiolm("continue", prompt, "-o", name, "--seed", "1", *options)[0] == 0
    assert open("a.wav", "rb").read() == open("b.wav", "rb").read()


def test_nothing_to_rank_candidates_by_is_said(audiolm, fake):
    code, _, err = audiolm("generate", "--unconditional", "-o", "a.wav", "--best-of", "4")
    assert code == 2
    assert err == "audiolm: error: No such option: --best-of\n"
    assert "There is no --best-of here" in " ".join(audiolm("generate", "--help")[1].split())


def test_clipping_is_reported(audiolm, prompt, fake):
    fake.level = 1.5
    _, out, err = audiolm("continue", prompt, "-o", "a.wav", "--json", "--duration", "1", "--no-watermark")
    assert json.loads(out)["clipped"] == 16000
    assert json.loads(out)["peak"] == 1.5
    assert "16000 samples beyond full scale clipped" in err


def test_continuation_only(audiolm, prompt):
    audiolm("continue", prompt, "-o", "a.wav", "--continuation-only", "--duration", "1", "--no-watermark")
    with soundfile.SoundFile("a.wav") as file:
        assert json.loads(file.comment)["prompt_samples"] == 0
        assert (file.read() == 0.25).all()
        assert file.frames == 16000


def test_generate(audiolm, fake):
    code, out, _ = audiolm("generate", "--unconditional", "-o", "a.wav", "-n", "2", "--seed", "1", "--duration", "2")
    assert (code, out) == (0, "a.0.wav\na.1.wav\n")
    assert soundfile.info("a.1.wav").duration == 2
    assert [len(prompt.waveform) for prompt in fake.calls[0]["prompts"]] == [0, 0]
    assert audiolm("generate", "--out-dir", "o", "--json", "-q")[0] == 0
    assert os.listdir("o") == ["generated.wav"]
    assert audiolm("generate")[0] == 2


def test_resynth(audiolm, prompt, fake, tmp_path):
    soundfile.write(tmp_path / "voice.wav", tone(0.5), 16000)
    code, out, err = audiolm("resynth", prompt, "--speaker", "voice.wav", "-o", "a.wav", "--seed", "1")
    assert (code, out) == (0, "a.wav\n"), err
    assert len(fake.calls[0]["speaker"]) == 8000
    with soundfile.SoundFile("a.wav") as file:
        assert json.loads(file.comment)["options"]["speaker"] == "voice.wav"
    assert audiolm("resynth", prompt, "-o", "b.wav")[0] == 0
    assert fake.calls[1]["speaker"] is None
    code, _, err = audiolm("resynth", prompt, "--speaker", "missing.wav", "-o", "c.wav", "-q")
    assert code == 1
    assert err.splitlines() == ["audiolm: error: missing.wav: no such file"]
    assert audiolm("resynth", prompt, "--speaker", "voice.wav", "-o", "voice.wav", "-f")[0] == 1


def test_notes_say_what_was_done_and_can_be_silenced(audiolm, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(1.0, 8000)] * 2, 1), 8000)
    for extra, notes in (([], 4), (["-q"], 0)):
        _, _, err = audiolm("continue", "a.wav", "-o", "b.wav", "-f", "--num-samples", "1", *extra)
        assert len(err.splitlines()) == notes
    assert not os.path.exists("b.0.wav")


def test_existing_output_is_refused_before_the_model_loads(audiolm, prompt, fake, tmp_path):
    (tmp_path / "out.wav").write_bytes(b"precious")
    code, out, err = audiolm("continue", prompt, "-o", "out.wav")
    assert (code, out) == (1, "")
    assert err == "audiolm: error: out.wav: exists already; use --force to replace it, --skip-existing to keep it\n"
    assert (tmp_path / "out.wav").read_bytes() == b"precious"
    assert fake.loads == []
    assert audiolm("continue", prompt, "-o", "out.wav", "--force")[0] == 0


def test_without_a_usable_input_the_model_is_not_loaded(audiolm, fake):
    assert audiolm("continue", "missing.wav", "-o", "out.wav")[0] == 1
    assert audiolm("encode", "missing.wav", "-o", "out.safetensors")[0] == 1
    assert audiolm("decode", "missing.safetensors", "-o", "out.wav")[0] == 1
    assert fake.loads == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the inputs: INPUT..., or --jobs FILE"),
        (["IN", "-o", "a.wav", "--out-dir", "o"], "either -o FILE or --out-dir"),
        (["IN", "-o", "a.wav", "-f", "--skip-existing"], "exclude each other"),
        (["IN", "-o", "a.wav", "--name", "{stem}.wav"], "--name: needs --out-dir"),
        (["IN", "--jobs", "IN"], "leave out INPUT"),
        (["IN"], "either -o FILE or --out-dir"),
        (["IN", "-o", "a.wav", "--frobnicate"], "No such option"),
        (["IN", "-o", "a.wav", "--duration", "0"], "--duration"),
        (["IN", "-o", "a.wav", "--duration", "nan"], "--duration"),
        (["IN", "-o", "a.wav", "--duration", "1e9"], "--duration"),
        (["IN", "-o", "a.wav", "--duration", "0.001"], "--duration"),
        (["IN", "-o", "a.wav", "--prompt-seconds", "-1"], "--prompt-seconds"),
        (["IN", "-o", "a.wav", "--max-pause", "0"], "--max-pause: must be above 0 and at most 3600 seconds, not 0"),
        (["IN", "-o", "a.wav", "--num-samples", "0"], "--num-samples"),
        (["IN", "-o", "a.wav", "--best-of", "0"], "--best-of: must be from 1 to 64, not 0"),
        (["IN", "-o", "a.wav", "--best-of", "65"], "--best-of: must be from 1 to 64, not 65"),
        (["IN", "-o", "a.wav", "--best-of", "2.5"], "--best-of: must be a whole number"),
        (["IN", "-o", "a.wav", "--batch-size", "0"], "--batch-size"),
        (["IN", "-o", "a.wav", "--threads", "0"], "--threads"),
        (["IN", "-o", "a.wav", "--seed", "-1"], "--seed"),
        (["IN", "-o", "a.wav", "--seed", "x"], "--seed"),
        (["IN", "-o", "a.wav", "--temperature", "-0.1"], "--temperature: must be at least 0"),
        (["IN", "-o", "a.wav", "--temperature", "inf"], "--temperature"),
        (["IN", "-o", "a.wav", "--temperature", "nan"], "--temperature"),
        (["IN", "-o", "a.wav", "--temperature", "1,2"], "one number or three"),
        (["IN", "-o", "a.wav", "--temperature", "warm"], "neither one number nor three"),
        (["IN", "-o", "a.wav", "--top-p", "0"], "--top-p"),
        (["IN", "-o", "a.wav", "--top-p", "1,1,1.1"], "--top-p"),
        (["IN", "-o", "a.wav", "--top-k", "2.5"], "--top-k"),
        (["IN", "-o", "a.wav", "--top-k", "-1"], "--top-k"),
        (["IN", "-o", "a.wav", "--device", "tpu"], "--device"),
        (["IN", "-o", "a.wav", "--dtype", "float16"], "--dtype"),
        (["IN", "-o", "a.m4a"], "must end in"),
        (["IN", "IN", "-o", "a.wav"], "--out-dir"),
        (["IN", "-o", "-", "--json"], "--json"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(audiolm, prompt, fake, tmp_path, arguments, says):
    code, out, err = audiolm("continue", *(str(prompt) if argument == "IN" else argument for argument in arguments))
    assert (code, out) == (2, "")
    *seed, line = err.splitlines()
    assert line.startswith("audiolm: error: ")
    assert says in line
    assert all("seed" in other for other in seed)
    assert fake.calls == []
    assert os.listdir(tmp_path) == ["prompt.wav"]


def test_encode_and_decode(audiolm, prompt, tmp_path):
    code, out, _ = audiolm("encode", prompt, "-o", "a.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["seconds"] == 1.0
    code, out, _ = audiolm("decode", "a.safetensors", "-o", "a.wav", "--quantizers", "2")
    assert (code, out) == (0, "a.wav\n")
    assert np.abs(soundfile.read("a.wav")[0] - tone(1.0) / 2).max() < 1e-4
    code, _, err = audiolm("decode", prompt, "-o", "b.wav")
    assert code == 1
    assert err.startswith(f"audiolm: error: {prompt}: not a token file")
    code, _, err = audiolm("decode", "a.safetensors", "-o", "b.wav", "--quantizers", "13")
    assert code == 2
    assert "has only 12" in err
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ModelError("config.json: name: missing"), 1, "config.json: name: missing"),
        (MemoryError(), 1, "out of memory; a smaller --batch-size or a shorter --duration needs less"),
        (ZeroDivisionError("a\nb"), 1, "unexpected ZeroDivisionError: a b (--debug shows where)"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_errors_of_the_model_and_of_the_program(audiolm, prompt, fake, tmp_path, error, code, says):
    fake.fail_at, fake.error = 0, error
    got, out, err = audiolm("continue", prompt, "-o", "out.wav", "--seed", "1")
    assert (got, out) == (code, "")
    says = f"error: {says}" if says else "interrupted: 0 of 1 outputs are done" + REST
    assert err.splitlines() == ["audiolm: seed 1", f"audiolm: {says}"]
    assert os.listdir(tmp_path) == ["prompt.wav"]


def test_debug_shows_a_traceback(audiolm, prompt, fake):
    fake.fail_at, fake.error = 0, ZeroDivisionError("x")
    _, _, err = audiolm("continue", prompt, "-o", "out.wav", "--debug")
    assert "Traceback" in err
    assert "in continue_" in err


def test_help_and_version(audiolm):
    code, out, err = audiolm("--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"audiolm {cli.__version__}, decodes on this processor by ")
    code, out, _ = audiolm("--help")
    assert code == 0
    assert "continue" in out
    assert audiolm("continue", "--help")[0] == 0
    code, out, err = audiolm()
    assert (code, out) == (2, "")
    assert "Usage" in err


@pytest.mark.parametrize(("words", "completed"), [("audiolm con", "continue"), ("audiolm resynth --sp", "--speaker")])
def test_shells_complete_commands_and_options(words, completed):
    asked = {"_AUDIOLM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    process = spawn(code="0", env={**os.environ, **asked}, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=20)[0].split() == [completed]
