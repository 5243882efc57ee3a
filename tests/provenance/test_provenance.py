"""What `audiolm detect` finds and says, and what outputs say of themselves."""

import io
import json

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.provenance import watermark
from audiolm_cli.request import AUDIO
from tests.helpers import EXAMPLE, ROOT
from tests.helpers.sounds import tone

RATE = watermark.RATE


@pytest.fixture
def marked(tmp_path):
    """The example and, behind it, itself with the mark of `speech`."""
    speech = files.read(EXAMPLE, RATE).samples
    path = tmp_path / "marked.wav"
    both = watermark.embed(np.tile(speech, 2), RATE, watermark.bundle_id("speech"), len(speech))
    files.write(path, both, RATE, {"software": "some program"})
    return path


def detect(audiolm, *arguments):
    code, out, err = audiolm("detect", "--json", *arguments)
    return code, [json.loads(line) for line in out.splitlines()], err


def test_a_mark_is_found_and_located(audiolm, marked, tiny_bundle):
    code, (found,), _ = detect(audiolm, marked, "-m", tiny_bundle)
    assert code == 0
    assert found["watermark"] is True
    assert found["watermark_bits"] == "01000001"
    assert found["watermark_bundle"] == "speech"
    assert found["watermark_confidence"] > watermark.THRESHOLD
    (segment,) = [s for s in found["segments"] if s["by"] == "watermark"]
    assert segment["start"] == pytest.approx(3.52, abs=0.1)
    assert segment["end"] == pytest.approx(7.04, abs=0.1)
    assert found["metadata"]["software"].startswith("some program")
    assert 0 <= found["generated_probability"] <= 1
    assert found["classifier"] == "tiny"


def test_a_recording_has_none(audiolm, tiny_bundle):
    code, (found,), _ = detect(audiolm, EXAMPLE, "-m", tiny_bundle)
    assert code == 0
    assert found["watermark"] is False
    assert found["watermark_bits"] is None
    assert found["watermark_confidence"] < watermark.THRESHOLD
    assert not [s for s in found["segments"] if s["by"] == "watermark"]


@pytest.mark.parametrize(("suffix", "rate", "channels"), [(".flac", 44100, 2), (".aiff", 8000, 1), (".mp3", 22050, 1)])
def test_any_format_goes_in(audiolm, tmp_path, tiny_bundle, suffix, rate, channels):
    soundfile.write(tmp_path / f"a{suffix}", np.tile(tone(1.0, rate)[:, None], channels), rate)
    code, (found,), err = detect(audiolm, tmp_path / f"a{suffix}", "-m", tiny_bundle)
    assert code == 0
    assert found["metadata"] is None
    assert f"resampled from {rate} to 16000 Hz" in err


def test_a_line_each_and_what_cannot_be_read_is_said(audiolm, marked, tiny_bundle):
    code, out, err = audiolm("detect", EXAMPLE, "nowhere.wav", marked, "-m", tiny_bundle)
    assert code == 1
    first, second = out.splitlines()
    assert "no watermark" in first
    assert "watermark of the bundle speech at 3.5-7.0 s" in second
    assert "nowhere.wav: no such file" in err


def test_json_has_the_documented_keys(audiolm, marked, tiny_bundle):
    _, (found,), _ = detect(audiolm, marked, "-m", tiny_bundle)
    documented = (ROOT / "docs/files.md").read_text(encoding="utf-8").partition("`audiolm detect --json`")[2]
    assert len(found) > 5
    assert [key for key in found if f"`{key}`" not in documented] == []


def test_what_others_wrote_into_a_file_is_printed_safely(audiolm, tmp_path, tiny_bundle):
    comment = json.dumps(
        {"bundle": "\x1b[31mred\n", "digitalSourceType": "trainedAlgorithmicMedia"}, ensure_ascii=False
    )
    files.write(tmp_path / "a.flac", tone(1.0), RATE, {"comment": comment})
    files.write(tmp_path / "b.flac", tone(1.0), RATE, {"comment": "[" * 5000})
    code, out, _ = audiolm("detect", "a.flac", "b.flac", "-m", tiny_bundle)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out


def test_what_is_too_short_to_tell_is_said(audiolm, tmp_path, tiny_bundle):
    files.write(tmp_path / "short.wav", tone(0.04), RATE, {})
    files.write(tmp_path / "click.wav", np.eye(1, 5 * RATE, RATE, dtype=np.float32)[0], RATE, {})
    _, found, _ = detect(audiolm, "short.wav", "click.wav", "-m", tiny_bundle)
    assert [(f["generated_probability"], f["classifier"], f["segments"]) for f in found] == [(None, "tiny", [])] * 2
    assert audiolm("detect", "short.wav", "click.wav", "-m", tiny_bundle)[1].count("too little sound to tell") == 2


def test_standard_input(audiolm, marked, tiny_bundle, monkeypatch):
    with marked.open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        code, (found,), _ = detect(audiolm, "-", "-m", tiny_bundle)
    assert (code, found["path"], found["watermark"]) == (0, "-", True)


def test_fail_fast_stops(audiolm, marked, tiny_bundle):
    code, out, _ = audiolm("detect", "nowhere.wav", marked, "-m", tiny_bundle, "--fail-fast")
    assert code == 1
    assert not out


def test_what_cannot_be_right_is_refused(audiolm, marked):
    assert audiolm("detect")[0] == 2
    assert audiolm("detect", marked, "--device", "gpu")[0] == 2
    code, _, err = audiolm("detect", marked, "-m", "nonesuch")
    assert code == 1
    assert "nonesuch: no such bundle" in err


@pytest.mark.parametrize("suffix", AUDIO)
def test_outputs_tell_where_they_are_from(audiolm, tiny_bundle, suffix):
    out = f"out{suffix}"
    audiolm("continue", EXAMPLE, "-o", out, "-m", tiny_bundle, "--duration", "3", "--seed", "5")
    code, (found,), _ = detect(audiolm, out, "-m", tiny_bundle)
    assert code == 0
    made_with = found["metadata"]["comment"]
    assert made_with["digitalSourceType"] == "trainedAlgorithmicMedia"
    assert made_with["bundle"] == "tiny"
    assert made_with["seed"] == 5
    assert made_with["prompt_samples"] == 56320
    assert made_with["watermark"] == found["watermark_bits"] == watermark.bits(watermark.bundle_id("tiny"))
    (segment,) = [s for s in found["segments"] if s["by"] == "watermark"]
    assert segment["start"] == pytest.approx(3.52, abs=0.15)
    assert (
        f"metadata: {found['metadata']['software']}, bundle tiny, seed 5"
        in audiolm("detect", out, "-m", tiny_bundle)[1]
    )


def test_without_a_watermark_it_is_said_and_recorded(audiolm, tiny_bundle):
    common = ("continue", EXAMPLE, "-m", tiny_bundle, "--duration", "2", "--seed", "5", "-q")
    _, _, err = audiolm(*common, "-o", "bare.wav", "--no-watermark")
    assert "--no-watermark: `audiolm detect` will not know" in err
    _, _, err = audiolm(*common, "-o", "marked.wav")
    assert "watermark" not in err
    _, (bare, marked), _ = detect(audiolm, "bare.wav", "marked.wav", "-m", tiny_bundle)
    assert bare["watermark"] is False
    assert marked["watermark"] is True
    assert bare["metadata"]["comment"]["watermark"] is False
    difference = soundfile.read("bare.wav")[0] - soundfile.read("marked.wav")[0]
    assert not difference[:56320].any()
    assert difference[56320:].any()


def test_a_bundle_without_a_classifier_says_so(audiolm, tmp_path):
    from dataclasses import replace

    from audiolm_cli.config import preset
    from tests.helpers.bundles import write_bundle

    folder = write_bundle(tmp_path / "bare", replace(preset("tiny"), detector=None))
    code, (found,), _ = detect(audiolm, EXAMPLE, "-m", folder)
    assert code == 0
    assert found["generated_probability"] is None
    assert "no classifier" in audiolm("detect", EXAMPLE, "-m", folder)[1]
