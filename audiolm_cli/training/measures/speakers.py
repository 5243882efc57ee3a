"""How much tokens tell about the speaker: a probe that predicts the speaker from a histogram of tokens.

Semantic tokens should carry content and not the voice, so near chance is good. The probe is multinomial naive Bayes,
fitted on some clips of each speaker and tested on others, of 5 s; with one number per speaker and code, it sees which
codes a voice favours but not their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import data
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.measures.measures import Figure, SpokenClip, figure

FIT_CLIPS, TEST_CLIPS, SECONDS = 12, 6, 5


def probe_clips(corpora: Iterable[Corpus]) -> list[SpokenClip]:
    """The first FIT_CLIPS + TEST_CLIPS clips of 5 s (cut to that) of every speaker who has as many."""
    enough, length = FIT_CLIPS + TEST_CLIPS, SECONDS * RATE
    chosen: list[SpokenClip] = []
    for corpus in corpora:
        by_speaker: dict[str, list[data.Clip]] = {}
        for clip in corpus.clips:
            if clip.samples >= length:
                by_speaker.setdefault(clip.speaker, []).append(clip)
        rich = [clips[:enough] for clips in by_speaker.values() if len(clips) >= enough]
        chosen += [SpokenClip(clip.speaker, corpus.samples(clip)[:length]) for clips in rich for clip in clips]
    return chosen


def speaker_probe(tokenize: Callable[[np.ndarray], np.ndarray], clips: Sequence[SpokenClip]) -> tuple[Figure, float]:
    """Share of test clips whose speaker the probe predicts, and chance, on the clips of `probe_clips`.

    Each speaker's first FIT_CLIPS clips fit, the rest test. `tokenize`: float32 [T], 16 kHz -> int [S].
    """
    speakers = sorted({clip.speaker for clip in clips})
    tokens: dict[str, list[np.ndarray]] = {speaker: [] for speaker in speakers}
    for clip in clips:
        tokens[clip.speaker].append(np.asarray(tokenize(clip.samples)))
    codes = 1 + max(int(part.max()) for parts in tokens.values() for part in parts)
    fitted = [np.concatenate(tokens[speaker][:FIT_CLIPS]) for speaker in speakers]
    counts = np.stack([np.bincount(part, minlength=codes) for part in fitted]) + 0.5
    log_chance = np.log(counts / counts.sum(1, keepdims=True))
    hits = [
        (speaker, float(log_chance[:, part].sum(1).argmax() == i))
        for i, speaker in enumerate(speakers)
        for part in tokens[speaker][FIT_CLIPS:]
    ]
    return figure(hits), 1 / len(speakers)
