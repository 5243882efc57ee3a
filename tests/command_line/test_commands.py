"""The commands with real, if tiny and random, models behind them."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_cli.command_line import cli
from audiolm_cli.console import Console
from tests.helpers import EXAMPLE, ROOT
from tests.helpers.sounds import tone


@pytest.fixture
def audiolm(tiny_bundle, audiolm, monkeypatch):
    """The command line with the tiny bundle."""
    monkeypatch.setenv("AUDIOLM_MODEL", str(tiny_bundle))
    return lambda *arguments: audiolm(*arguments, "--device", "cpu", "--threads", "1")


def test_the_prompt_is_kept_and_the_duration_is_to_the_sample(audiolm):
    code, out, err = audiolm("continue", EXAMPLE, "-o", "out.wav", "--duration", "0.7123", "--seed", "1")
    assert (code, out) == (0, "out.wav\n"), err
    original, _ = soundfile.read(EXAMPLE, dtype="int16")
    samples, rate = soundfile.read("out.wav", dtype="int16")
    assert rate == 16000
    assert len(samples) == len(original) + round(0.7123 * 16000)
    assert np.array_equal(samples[: len(original) - 320], original[:-320])


@pytest.mark.slow
def test_the_installed_script(tiny_bundle, tmp_path):
    script = Path(sys.executable).parent / "audiolm"
    if not script.exists():
        pytest.skip("audiolm is not installed in this environment")
    command = [script, "continue", EXAMPLE, "-o", "out.flac", "--duration", "0.4", "-m", tiny_bundle, "--seed", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "out.flac\n"), result.stderr
    assert result.stderr.splitlines()[0] == "audiolm: seed 3"
    assert "Warning" not in result.stderr
    assert soundfile.info(tmp_path / "out.flac").duration == pytest.approx(3.52 + 0.4)


def test_the_seed_decides_the_bytes(audiolm, prompt):
    contents = []
    for seed, name in ((1, "a.wav"), (1, "b.wav"), (2, "c.wav")):
        assert audiolm("continue", prompt, "-o", name, "--duration", "0.4", "--seed", seed)[0] == 0
        contents.append(open(name, "rb").read())
    assert contents[0] == contents[1]
    assert not np.array_equal(soundfile.read("a.wav")[0], soundfile.read("c.wav")[0])


def test_samples_differ_and_do_not_depend_on_their_batch(audiolm, prompt, tmp_path):
    soundfile.write(tmp_path / "other.wav", tone(0.3), 16000)
    common = ("--duration", "0.4", "--seed", "1", "--batch-size", "3")
    assert audiolm("continue", prompt, "-o", "alone.wav", *common)[0] == 0
    assert audiolm("continue", prompt, "other.wav", "--out-dir", "o", "--num-samples", "2", *common)[0] == 0
    alone, first, second = (soundfile.read(name)[0] for name in ("alone.wav", "o/prompt.0.wav", "o/prompt.1.wav"))
    assert np.array_equal(alone, first)
    assert not np.array_equal(first, second)


def test_json_of_a_real_run(audiolm, prompt):
    _, out, _ = audiolm("continue", prompt, "-o", "a.flac", "--duration", "0.4", "--json", "-q")
    record = json.loads(out)
    assert record["path"] == "a.flac"
    tokens = {stage: figures["tokens"] for stage, figures in record["stages"].items()}
    assert tokens == {"tokenize": 25, "semantic": 12, "coarse": 80, "fine": 160, "decode": 70}  # of `decode`: frames
    assert record["real_time_factor"] > 0
    assert record["new_seconds"] == 0.4


COMMON = {"path", "source", "model", "identity", "seconds"}
SOUND = {"peak", "clipped"}
SAMPLED = {
    "seed",
    "position",
    "sample",
    "prompt_seconds",
    "new_seconds",
    "batch",
    "kernel",
    "real_time_factor",
    "stages",
}
SAMPLED |= {"surprise", "unfamiliar", "unfamiliar_reason", "watermark_bits", "candidates", "candidate"}


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["continue", "in.wav", "-o", "a.wav", "--duration", "0.2"], COMMON | SOUND | SAMPLED),
        (["generate", "--unconditional", "-o", "a.wav", "--duration", "0.2"], COMMON | SOUND | SAMPLED),
        (["resynth", "in.wav", "--speaker", "in.wav", "-o", "a.wav"], COMMON | SOUND | SAMPLED),
        (["encode", "in.wav", "-o", "a.safetensors"], COMMON),
        (["decode", "in.safetensors", "-o", "a.wav"], COMMON | SOUND | {"quantizers"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_json_has_the_documented_keys(audiolm, tmp_path, command, keys):
    soundfile.write(tmp_path / "in.wav", tone(0.51), 16000)
    assert audiolm("encode", "in.wav", "-o", "in.safetensors")[0] == 0
    code, out, err = audiolm(*command, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert set(record) == keys
    documented = (ROOT / "docs/files.md").read_text(encoding="utf-8").partition("## JSON output")[2]
    documented = documented.partition("`audiolm detect")[0]
    assert all(f"`{key}`" in documented for key in keys)
    assert record["seconds"] == pytest.approx({"continue": 0.71, "generate": 0.2}.get(command[0], 0.51))


def test_only_what_ends_by_itself_says_so_in_its_metadata(audiolm, tiny_bundle, prompt):
    for name, options in (("a.wav", []), ("b.wav", ["--until-end"])):
        code, out, err = audiolm("continue", prompt, "-o", name, "-m", tiny_bundle, "--seed", 1, "--json", *options)
        assert code == 0, err
        with soundfile.SoundFile(name) as file:
            made_with = json.loads(file.comment)["options"]
        assert made_with.get("until_end", False) == bool(options)
        assert (json.loads(out)["new_seconds"] < 7) == bool(options)


def test_resynthesis_of_the_example_is_as_long_and_repeatable(audiolm):
    contents = []
    for name in ("a.wav", "b.wav"):
        code, _, err = audiolm("resynth", EXAMPLE, "--speaker", EXAMPLE, "-o", name, "--seed", "1")
        assert code == 0, err
        contents.append(open(name, "rb").read())
    assert contents[0] == contents[1]
    assert soundfile.info("a.wav").frames == soundfile.info(EXAMPLE).frames


def test_a_silent_reference_fails_its_own_job_only(audiolm, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(0.5), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    jobs = [{"input": "in.wav", "speaker": f"{name}.wav", "output": f"by-{name}.wav"} for name in ("silent", "in")]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    code, out, err = audiolm("resynth", "--jobs", "jobs.jsonl", "-q")
    assert (code, out) == (1, "by-in.wav\n")
    assert err == "audiolm: error: silent.wav: is silent: there is no voice in it\n"


@pytest.mark.parametrize("samples", [np.zeros(16000), tone(0.04), tone(0.041), tone(1.0)], ids=len)
def test_odd_but_usable_prompts(audiolm, tmp_path, samples):
    soundfile.write(tmp_path / "in.wav", samples, 16000)
    code, _, err = audiolm("continue", "in.wav", "-o", "out.wav", "--duration", "0.2", "--seed", "1")
    assert code == 0, err
    assert len(soundfile.read("out.wav")[0]) == len(samples) + 3200


def test_encode_then_decode(audiolm, prompt, tmp_path):
    assert audiolm("encode", prompt, "-o", "a.safetensors")[0] == 0
    assert audiolm("decode", "a.safetensors", "-o", "all.wav")[0] == 0
    assert audiolm("decode", "a.safetensors", "-o", "few.wav", "--quantizers", "1")[0] == 0
    everything, few = soundfile.read("all.wav")[0], soundfile.read("few.wav")[0]
    assert len(everything) == len(few) == 16000
    assert not np.array_equal(everything, few)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-100])
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("cut", "junk", "empty"):
        code, _, err = audiolm("decode", f"{name}.safetensors", "-o", "bad.wav")
        assert code == 1
        assert err.startswith(f"audiolm: error: {name}.safetensors: ")
        assert err.count("\n") == 1
        assert not os.path.exists("bad.wav")


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [("--model", "nonexistent", 1), ("--model", ".", 1), ("--device", "cuda:99", 2)],
)
def test_what_cannot_be_loaded(tiny_bundle, prompt, tmp_path, monkeypatch, capfd, option, value, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOLM_MODEL", str(tiny_bundle))
    assert cli.main(["continue", str(prompt), "-o", "out.wav", "--seed", "1", option, value]) == code
    _seed, error = capfd.readouterr().err.splitlines()
    assert error.startswith("audiolm: error: ")
    assert "unexpected" not in error
    assert os.listdir(tmp_path) == ["prompt.wav"]


@pytest.mark.slow
def test_odd_recordings(tiny_bundle, tmp_path, monkeypatch, capfd):
    """Ten minutes, 96 kHz in eight channels as floats, and names with spaces, newlines and other scripts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOLM_MODEL", str(tiny_bundle))
    names = ["ten minutes.flac", "eight\nchannels.wav", "голос ü.wav", "-dash.wav"]
    soundfile.write(tmp_path / names[0], np.tile(tone(60), 10), 16000)
    soundfile.write(tmp_path / names[1], np.stack([tone(2, 96000)] * 8, 1), 96000, "FLOAT")
    for name in names[2:]:
        soundfile.write(tmp_path / name, tone(0.5, 8000), 8000)
    soundfile.write(tmp_path / "short.wav", tone(0.01), 16000)
    recordings = ["--", *names, "short.wav"]
    code = cli.main(["continue", "--duration", "0.2", "--seed", "1", "--out-dir", "out", *recordings])
    out, err = capfd.readouterr()
    written = [name.replace("flac", "wav") for name in names]
    assert (code, out) == (1, "".join(f"out/{name}\n" for name in written))
    assert sorted(os.listdir("out")) == sorted(written)
    lengths = [soundfile.info(tmp_path / "out" / name).duration for name in written]
    assert lengths == [pytest.approx(seconds + 0.2) for seconds in (600, 2, 0.5, 0.5)]
    assert "audiolm: error: short.wav: shorter than one token, 40 ms" in err.splitlines()
    assert all(line.startswith("audiolm: ") for line in err.splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "weights/piano/config.json").is_file(), reason="there are no weights/piano")
@pytest.mark.parametrize("model", ["speech", "piano"])
def test_embedded_bundles_know_their_own_kind(audiolm, model):
    for source, name in (("prompt", "speech"), ("piano", "piano")):
        recording = EXAMPLE.with_name(f"{source}.flac")
        code, out, err = audiolm(
            *("continue", recording, "-o", f"{name}.wav", "--duration", "0.4", "--seed", "1", "-m", model, "--json")
        )
        assert code == 0, err
        record = json.loads(out)
        assert record["unfamiliar"] == (name != model)
        assert (f"unlike what the bundle {model} was trained on" in err) == (name != model)
        with soundfile.SoundFile(f"{name}.wav") as file:
            options = json.loads(file.comment)["options"]
        assert options["prompt_seconds"] == {"speech": 3.0, "piano": 4.0}[model]
        assert record["prompt_seconds"] == soundfile.info(recording).duration  # all of it is kept


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        (["encode", "-o", "b.safetensors"], {"tokenize": 100}),
        (["decode", "-o", "b.wav"], {"decode": 200}),
        (["continue", "-o", "b.wav", "--duration", "0.2"], {"tokenize": 75, "decode": 160}),
        (["detect"], {"read": 1, "search": 1, "tokenize": 100, "judge": 300}),
    ],
)
def test_long_work_shows_how_far_it_is(tiny_bundle, audiolm, tmp_path, monkeypatch, command, stages):
    """At least every four seconds of sound, and to the end."""
    seconds = 4.0
    soundfile.write(tmp_path / "a.wav", np.tile(tone(1.0), 4), 16000)
    monkeypatch.setenv("AUDIOLM_MODEL", str(tiny_bundle))
    assert audiolm("encode", "a.wav", "-o", "a.safetensors")[0] == 0
    told: dict[str, list] = {}

    @contextlib.contextmanager
    def progress(self, seconds):
        yield lambda stage, done, total: told.setdefault(stage, []).append((done, total))

    monkeypatch.setattr(Console, "progress", progress)
    code, _, err = audiolm(*command, "a.safetensors" if command[0] == "decode" else "a.wav")
    assert code == 0, err
    for stage, total in stages.items():
        steps = told[stage]
        assert {whole for _, whole in steps} == {total}
        done = [count for count, _ in steps]
        assert (done[-1], done == sorted(done)) == (total, True)
        assert max(b - a for a, b in itertools.pairwise(done)) <= max(1, total * 4 / seconds)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-300, "top-p": 1e-300, "guidance": 1e-300},
        {"temperature": 1e300, "top-k": 2**31 - 1, "guidance": 10},
        {"temperature": [0, 5e-324, 1.7e308], "top-k": [1, 0, 2**31 - 1], "top-p": [1, 0.999999999, 5e-324]},
        {"seed": 2**63 - 1, "prompt-seconds": 3600, "duration": 0.04},
    ],
)
def test_the_ends_of_what_may_be_asked(tiny_bundle, audiolm, prompt, tmp_path, options):
    job = {"input": str(prompt), "output": "a.wav", "duration": 0.2, **options}
    (tmp_path / "jobs").write_text(json.dumps(job))
    code, out, err = audiolm("continue", "--jobs", "jobs", "-m", tiny_bundle, "-q")
    assert (code, out, err) == (0, "a.wav\n", "")
    assert np.isfinite(soundfile.read("a.wav")[0]).all()
