"""The speaker probe on tokens that tell all or nothing."""

import numpy as np

from audiolm_cli.training.corpora import data
from audiolm_cli.training.measures import speakers
from audiolm_cli.training.measures.measures import SpokenClip
from audiolm_cli.training.measures.speakers import FIT_CLIPS, TEST_CLIPS, probe_clips, speaker_probe

CLIPS = FIT_CLIPS + TEST_CLIPS


def test_tokens_that_name_the_speaker_are_found_out():
    clips = [SpokenClip(name, np.full(50, level)) for level, name in enumerate("abcd") for _ in range(CLIPS)]
    found, chance = speaker_probe(lambda samples: samples.astype(int), clips)
    assert found.mean == 1
    assert chance == 0.25


def test_tokens_without_the_speaker_give_chance():
    random = np.random.default_rng(0)
    clips = [SpokenClip(str(n), np.zeros(50)) for n in range(20) for _ in range(CLIPS)]
    found, chance = speaker_probe(lambda samples: random.integers(8, size=100), clips)
    assert found.low <= chance + 0.05
    assert found.mean < 0.2


def test_probe_clips_leave_out_short_clips_and_speakers_with_few():
    length = speakers.SECONDS * speakers.RATE
    rows = [("rich", length + 5)] * (CLIPS + 2) + [("poor", length)] * (CLIPS - 1) + [("short", length - 1)] * CLIPS
    clips = [data.Clip(f"{n}", name, "", "", 0, size) for n, (name, size) in enumerate(rows)]
    chosen = probe_clips([data.Corpus(np.zeros(length + 5, np.int16), clips)])
    assert {clip.speaker for clip in chosen} == {"rich"}
    assert len(chosen) == CLIPS
    assert all(len(clip.samples) == length for clip in chosen)
