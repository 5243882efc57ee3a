"""How the watermark's figures are taken: from windows of two seconds, marked and not, after each handling."""

import shutil

import numpy as np
import pytest

from audiolm_cli.audio import files
from audiolm_cli.provenance import watermark
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.evaluation import watermark_robustness
from tests.helpers import EXAMPLE

RATE = watermark_robustness.RATE


@pytest.fixture(scope="module")
def speech():
    return np.tile(files.read(EXAMPLE, RATE).samples, 3)


class Sign:
    """A mark that is the first sample: easily cut off."""

    name = "sign"
    threshold: float | None = 0.5

    def embed(self, samples):
        return np.concatenate([[1.0], samples[1:]]).astype(np.float32)

    def score(self, samples):
        return float(samples.max())

    def right(self, samples):
        return bool(samples[0] == 1)


def test_windows_follow_each_other_and_leave_out_silence(speech):
    found = list(watermark_robustness.windows(np.concatenate([speech, np.zeros(6 * RATE, np.float32)])))
    assert {len(window) for window in found} == {2 * RATE}
    assert len(found) in (5, 6)


def test_pieces_of_recordings_have_enough_windows(speech):
    clips = [Clip("a", "a", "", "", 0, len(speech)), Clip("b", "b", "", "", RATE, 3 * RATE)]
    corpus = Corpus((speech * 32767).astype(np.int16), clips)
    pieces = watermark_robustness.recordings([corpus, corpus], 50)
    assert {len(piece) for piece in pieces} == {60 * RATE}
    assert sum(len(list(watermark_robustness.windows(piece, n))) for n, piece in enumerate(pieces)) >= 50


def test_shares_are_of_windows_found_right_and_false():
    quiet = [np.full(7 * RATE, 0.1, np.float32)] * 2
    rows = dict(
        watermark_robustness.survival(Sign(), quiet, quiet, {"untouched": lambda x: x, "louder": lambda x: x * 6})
    )
    assert rows["untouched"]["found"] == 0  # windows begin behind it
    assert rows["untouched"]["false alarms"] == 0
    assert rows["louder"]["found"] == rows["louder"]["false alarms"] == 1
    assert rows["louder"]["and right"] == 0
    assert rows["louder"]["recorded"] == rows["louder"]["windows"] > 3


def test_a_mark_without_a_threshold_gets_one_from_recordings(speech):
    marker = Sign()
    marker.threshold = None
    rows = dict(watermark_robustness.survival(marker, [speech * 3], [speech], {"untouched": lambda x: x}))
    assert rows["untouched"]["found"] == 1


@pytest.mark.slow
def test_our_mark_survives_what_is_measured(speech):
    from audiolm_cli.bundles import bundle

    loaded = bundle.load("speech", device="cpu")
    changes = watermark_robustness.handlings(loaded.codec)
    for tool, names in (
        ("ffmpeg", ("MP3, 64 kbit/s", "MP3, 128 kbit/s")),
        ("opusenc", ("Opus, 16 kbit/s", "Opus, 24 kbit/s")),
    ):
        if not shutil.which(tool):
            changes = {name: change for name, change in changes.items() if name not in names}
    broken = {"our codec", "1.02 times as fast", "noise 20 dB below"}  # at least in some windows
    rows = dict(watermark_robustness.survival(watermark_robustness.Ours("speech"), [speech], [speech], changes))
    for name, row in rows.items():
        assert row["false alarms"] == 0, name
        assert row["highest"] < watermark.THRESHOLD
        assert name in broken or row["and right"] == 1, name


def test_the_costs_are_of_the_mark(speech):
    pytest.importorskip("pesq")
    found = watermark_robustness.cost(watermark_robustness.Ours("speech"), [speech])
    assert found["PESQ"] > 4.3
    assert found["least"] >= 20
    assert found["s/s"] < 0.1
