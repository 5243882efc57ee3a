"""Whether the words stayed: word error rate by a recogniser that has nothing to do with AudioLM.

That is pocketsphinx with the US English acoustic and language models of its PyPI package. It is weak, so what it hears
in an output is compared with what it hears in the source recording, and its own error on recordings with a transcript
is stated beside that. Audio is `float32 [T]` at 16 kHz.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from audiolm_cli.training.data import Corpus
from audiolm_cli.training.measures import Figure, figure
from audiolm_cli.training.resyntheses import edit_distance

Hear = Callable[[np.ndarray], list[str]]  # float32 [T] at 16 kHz -> words

FILLER = ("<", "[")  # first character of what is no word: <s>, </s>, <sil>, [NOISE], [SPEECH]
PRONUNCIATION = re.compile(r"\(\d+\)$")  # "the(2)": the dictionary's second way to say "the"


def recogniser() -> Hear:
    """A function from samples to the words heard, lower-case ones of CMU's dictionary; no call depends on another.

    A call takes half a second and a fifth of the recording's length on one core. Raises ImportError without
    pocketsphinx (extra `eval`).
    """
    from pocketsphinx import Decoder

    def hear(samples: np.ndarray) -> list[str]:
        if not len(samples):
            return []  # process_raw raises IndexError
        # A new one each time: what is left of one utterance changes the words of the next, and reinit_feat takes only
        # most of it away. Without fwdflat, a second pass that takes half as long again and errs no less.
        decoder = Decoder(loglevel="FATAL", fwdflat=False)
        raw = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
        decoder.start_utt()
        decoder.process_raw(raw, full_utt=True)
        decoder.end_utt()
        # Where every frame is silent their mean is that of none, and then words are made up, others at every call.
        if "nan" in decoder.get_cmn() or decoder.hyp() is None:
            return []
        words = (PRONUNCIATION.sub("", segment.word) for segment in decoder.seg())
        return [word for word in words if not word.startswith(FILLER)]

    return hear


def word_error(reference: Sequence[str], heard: Sequence[str]) -> float:
    """Words to insert, delete and replace, over the words of the reference: may exceed 1; NaN where that has none."""
    if not reference:
        return float("nan")
    number = {word: i for i, word in enumerate({*reference, *heard})}
    a, b = (np.array([number[word] for word in words], np.int64) for words in (reference, heard))
    return edit_distance(a, b) / len(reference)


def own_error(corpus: Corpus, hear: Hear, limit: int = 30) -> Figure:
    """The recogniser's word error against the transcripts of at most `limit` clips, evenly spread over those with one.

    An average over speakers, as all figures.
    """
    clips = [clip for clip in corpus.clips if clip.text]
    if len(clips) > limit:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, limit).astype(int)]
    return figure((clip.speaker, word_error(clip.text.lower().split(), hear(corpus.samples(clip)))) for clip in clips)
