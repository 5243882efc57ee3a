"""What recordings are cut into, what is dropped and why, and how they are split."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.training.adapting import recordings
from audiolm_cli.training.adapting.stretches import LONGEST, cut
from audiolm_cli.training.corpora.data import Clip
from tests.training.adapting.voices import RATE, notes, speech

NOISE = np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32)


def fates(samples: np.ndarray, **how: bool) -> set[str]:
    return {stretch.fate for stretch in cut(samples.astype(np.float32), RATE, **how)}


def write(file: Path, samples: np.ndarray, rate: int = RATE) -> str:
    soundfile.write(file, samples, rate)
    return str(file)


def gathered(folder: Path, files: list[str], most: float = 3600) -> tuple[recordings.Report, dict[str, list[Clip]]]:
    return recordings.gather(recordings.listed(files), folder, RATE, True, most, lambda *told: None)


def test_each_kind_of_sound_has_its_fate():
    voice = speech(20)
    assert fates(voice) == {"usable"}
    assert fates((voice * 30).clip(-0.9, 0.9)) == {"clipped"}
    assert fates(voice + NOISE * voice.std() * 0.4) == {"noisy"}
    assert fates(notes(20)) == {"music"}
    assert fates(notes(20), speech=False) == {"usable"}  # to a piano's bundle it is what is wanted
    assert fates(NOISE * 1e-5) == fates(np.zeros(5 * RATE)) == fates(np.zeros(0)) == set()


def test_cuts_are_made_in_pauses_and_drop_long_ones():
    voice = speech(60)
    found = cut(np.concatenate([voice, np.zeros(5 * RATE, np.float32), voice]), RATE)
    assert all(a.last <= b.first for a, b in itertools.pairwise(found))
    assert max(s.last - s.first for s in found) <= (LONGEST + 1) * RATE
    heard = sum(s.last - s.first for s in found) / RATE
    assert 110 < heard < 121
    edges = [voice[s.first : s.first + 160].std() for s in found if s.last < len(voice)]
    assert np.median(edges) < 0.02 * voice.std()


def test_long_recordings_are_cut_as_short_ones_are(monkeypatch):
    samples = (speech(50) * 32767).astype(np.int16)
    whole = list(recordings.stretches(samples, RATE, True))
    monkeypatch.setattr(recordings, "CHUNK", 20.0)
    pieces = list(recordings.stretches(samples, RATE, True))
    assert [s.fate for s in pieces] == ["usable"] * len(pieces)
    assert pieces[-1].last == pytest.approx(whole[-1].last, abs=RATE / 10)
    used = [sum(s.last - s.first for s in some) for some in (whole, pieces)]
    assert used[1] == pytest.approx(used[0], rel=0.03)


def test_validation_is_the_end_of_each_recording(tmp_path):
    files = [write(tmp_path / f"{n}.wav", speech(seconds, n)) for n, seconds in enumerate((90, 75, 20, 20))]
    report, clips = gathered(tmp_path / "audio", files)
    assert report.recordings == 4
    assert report.usable == pytest.approx(205, rel=0.05)
    assert report.training + report.validation == pytest.approx(report.usable)
    assert 20 <= report.validation < 60
    for number in ("000000", "000001"):
        ends = {split: [clip.path for clip in some if clip.path.startswith(number)] for split, some in clips.items()}
        assert ends["valid"]
        assert max(ends["train"]) < min(ends["valid"])
    assert {clip.path[:6] for clip in clips["valid"]} == {"000000", "000001", "000003"}  # short ones are one together
    everything = sorted((clip.offset, clip.samples) for some in clips.values() for clip in some)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(everything))
    heard = recordings.corpus(tmp_path / "audio", clips["train"])
    assert heard.samples(clips["train"][0]).std() == pytest.approx(speech(90)[: 5 * RATE].std(), rel=0.5)


def test_reading_stops_when_its_time_is_over(tmp_path):
    files = [write(tmp_path / f"{n}.wav", speech(60, n)) for n in range(4)]
    report, clips = recordings.gather(
        recordings.listed(files), tmp_path / "audio", RATE, True, 3600, lambda *told: None, lambda usable: usable > 90
    )
    assert (report.recordings, report.unread) == (2, 3)
    assert 90 < report.usable < 105
    assert sum(report.seconds.values()) == pytest.approx(report.usable, rel=0.1)
    assert "3 recordings" in list(report.lines())[1]
    assert clips["valid"]


def test_two_hours_are_cut_in_little_memory(tmp_path):
    """As two hours at 16 kHz, here at 1 kHz: two hours take seconds."""
    rate, minute = 1000, (speech(60)[::16] * 32767).astype(np.int16)
    file = tmp_path / "long.wav"
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16") as sound:
        for number in range(120):
            sound.write((minute * (0.3 + 0.005 * number)).astype(np.int16))
    tracemalloc.start()
    report, clips = recordings.gather(
        recordings.listed([str(file)]), tmp_path / "audio", rate, False, 1800, lambda *told: None
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * 7200 * rate * 4  # the whole as float32 is never there
    assert report.usable == pytest.approx(7200, rel=0.05)
    assert report.training + report.validation == pytest.approx(1800, rel=0.05)
    offsets = [clip.offset for some in clips.values() for clip in some]
    assert min(offsets) < 60 * rate
    assert max(offsets) > 7100 * rate * report.usable / 7200


def test_more_than_can_be_used_is_thinned_evenly():
    clips = [Clip(f"{n:06}/0", "", "", "", 10 * n, 10) for n in range(100)]
    kept = recordings.spread(clips, 250)
    assert len(kept) == 25
    assert np.diff([clip.offset for clip in kept]).max() == 40
    assert recordings.spread(clips, 5000) == clips


def test_level_and_bandwidth(tmp_path):
    rng = np.random.default_rng(1)
    wide = speech(30) + 0.02 * np.abs(speech(30)) ** 0.5 * rng.standard_normal(30 * RATE).astype(np.float32)
    report, _ = gathered(tmp_path / "a", [write(tmp_path / "wide.wav", wide)])
    assert report.bandwidth > 7500
    assert report.level == pytest.approx(10 * np.log10(np.square(wide).mean()), abs=1.5)
    narrow, _ = gathered(tmp_path / "b", [write(tmp_path / "narrow.wav", wide[::4], 4000)])
    assert 1500 <= narrow.bandwidth <= 2250


def test_what_is_in_a_folder(tmp_path):
    for name in ("b/2.wav", "a.wav", ".hidden/3.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [Path(source.path).name for source in recordings.listed([str(tmp_path), str(tmp_path / "a.wav")])]
    assert names == ["a.wav", "2.wav"]
    (tmp_path / "manifest.tsv").write_text("path\tsplit\tspeaker\na.wav\tvalid\tann\nb/2.wav\ttrain\tbob\n")
    assert recordings.listed([str(tmp_path)]) == [recordings.Source(str(tmp_path / "b/2.wav"), "bob")]
    (tmp_path / "b/none").mkdir()
    with pytest.raises(InputError, match="no recordings there"):
        recordings.listed([str(tmp_path / "b/none")])
    with pytest.raises(UsageError, match="standard input"):
        recordings.listed(["-"])


def test_damaged_files_are_named_and_the_rest_is_used(tmp_path):
    good = write(tmp_path / "good.wav", speech(15))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    cut_off = tmp_path / "cut.wav"
    cut_off.write_bytes(Path(good).read_bytes()[:100_000])
    report, clips = gathered(
        tmp_path / "audio", [good, *(str(tmp_path / f"{n}.wav") for n in ("empty", "text", "cut"))]
    )
    assert report.recordings == 2
    assert len(report.unreadable) == 2
    assert "the file is empty" in report.unreadable[0]
    assert "truncated" in report.notes[0]
    assert clips["train"]
