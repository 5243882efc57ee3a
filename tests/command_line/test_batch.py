"""Several outputs of one command line, with the models replaced by a stand-in: lists, failures, runs that go on."""

import io
import json
import os
import shutil
import sys

import pytest
import soundfile

from audiolm_cli.command_line import cli
from tests.helpers.sounds import tone

pytestmark = pytest.mark.usefixtures("fake")


def test_many_inputs_into_a_folder(audiolm, tmp_path):
    for name in ("a", "b c", "ä"):
        soundfile.write(tmp_path / f"{name}.flac", tone(0.5), 16000)
    code, out, _ = audiolm("continue", "a.flac", "b c.flac", "ä.flac", "--out-dir", "o/p", "--duration", "1")
    assert code == 0
    assert out.splitlines() == ["o/p/a.wav", "o/p/b c.wav", "o/p/ä.wav"]
    assert sorted(os.listdir("o/p")) == ["a.wav", "b c.wav", "ä.wav"]


def test_one_bad_input_does_not_stop_the_rest(audiolm, prompt, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "short.wav", tone(0.02), 16000)
    code, out, err = audiolm("continue", "text.wav", "missing.wav", "short.wav", prompt, "--out-dir", "o")
    assert (code, out) == (1, "o/prompt.wav\n")
    errors = [line.partition(" can read")[0] for line in err.splitlines() if "error" in line]
    assert errors == [
        "audiolm: error: missing.wav: no such file",
        f"audiolm: error: text.wav: not audio that libsndfile{' or ffmpeg' if shutil.which('ffmpeg') else ''}",
        "audiolm: error: short.wav: shorter than one token, 40 ms",
    ]
    assert os.listdir("o") == ["prompt.wav"]


def test_the_first_bad_input_can_end_it(audiolm, prompt, fake):
    code, out, err = audiolm("continue", prompt, "missing.wav", "--out-dir", "o", "--fail-fast", "--seed", "1")
    assert (code, out) == (1, "")
    assert err.splitlines() == ["audiolm: seed 1", "audiolm: error: missing.wav: no such file"]
    assert fake.loads == []


def test_a_broken_off_run_goes_on(audiolm, prompt, fake):
    """Noise belongs to the place in the list: what is made later is what would have been made at once."""
    options = ("continue", prompt, "--out-dir", "o", "--num-samples", "4", "--seed", "3", "--duration", "1")
    assert audiolm(*options)[0] == 0
    first = {name: open(f"o/{name}", "rb").read() for name in os.listdir("o")}
    for name in ("o/prompt.1.wav", "o/prompt.3.wav"):
        os.unlink(name)
    code, out, err = audiolm(*options, "--skip-existing")
    assert (code, out) == (0, "o/prompt.1.wav\no/prompt.3.wav\n")
    assert "2 outputs exist already and are kept" in err
    assert [prompt.sample for prompt in fake.calls[-1]["prompts"]] == [1, 3]
    assert {name: open(f"o/{name}", "rb").read() for name in os.listdir("o")} == first
    loads = len(fake.loads)
    assert audiolm(*options, "--skip-existing")[:2] == (0, "")
    assert len(fake.loads) == loads


def test_a_job_list(audiolm, prompt, fake, tmp_path):
    lines = [
        {"input": str(prompt)},
        {"input": str(prompt), "output": "here.flac", "duration": 2, "seed": 9, "num-samples": 2},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, err = audiolm("continue", "--jobs", "jobs.jsonl", "--out-dir", "o", "--duration", "1", "--seed", "5")
    assert (code, out) == (0, "o/prompt.wav\nhere.0.flac\nhere.1.flac\n"), err
    assert [call["request"].duration for call in fake.calls] == [1, 2]
    places = [(p.position, p.sample, p.seed) for call in fake.calls for p in call["prompts"]]
    assert places == [(0, 0, 5), (1, 0, 9), (1, 1, 9)]
    assert soundfile.info("here.1.flac").duration == 3
    (tmp_path / "bad.jsonl").write_text(json.dumps(lines[0]) + '\n{"input": "a.wav", "mode": 1}\n')
    code, _, err = audiolm("continue", "--jobs", "bad.jsonl", "--out-dir", "o")
    assert code == 2
    assert err.startswith(
        "audiolm: error: bad.jsonl:2: unknown key 'mode'; known are best-of, continuation-only, duration, "
    )
    assert audiolm("continue", "--jobs", "missing.jsonl", "--out-dir", "o")[0] == 1


def test_a_job_list_from_standard_input(fake, prompt, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"output": "%s/a.wav"}' % bytes(tmp_path))))
    assert cli.main(["generate", "--unconditional", "--jobs", "-"]) == 0
    assert capfd.readouterr().out == f"{tmp_path}/a.wav\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"input": "-", "output": "b.wav"}')))
    assert cli.main(["continue", "--jobs", "-"]) == 2
