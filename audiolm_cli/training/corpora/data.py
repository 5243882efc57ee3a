"""Recordings for training: a folder with manifest.tsv, decoded once into one array of samples.

manifest.tsv is tab-separated without quoting; the columns `path`, `split` (train or valid) and `speaker` are required,
`corpus` and `text` are optional. Any file that libsndfile reads will do.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from audiolm_cli.bundles.bundle import whole
from audiolm_cli.errors import InputError

HALVES = ("tuning", "testing")  # of the validation speakers


@dataclass(frozen=True)
class Clip:
    """One recording: `samples` samples at `offset` in the corpus array."""

    path: str
    speaker: str
    corpus: str
    text: str
    offset: int
    samples: int
    sex: str = ""  # of the speaker, f or m if known


@dataclass(frozen=True)
class Corpus:
    """All recordings of one split: `audio` int16 [N] on disk, and the clips in it."""

    audio: np.ndarray
    clips: list[Clip]

    def samples(self, clip: Clip) -> np.ndarray:
        """A clip as `float32 [T]` in [-1, 1]."""
        return self.audio[clip.offset : clip.offset + clip.samples].astype(np.float32) / 32768


def read_manifest(data: Path, split: str, hours: float | None = None) -> list[dict[str, str]]:
    """The rows of a folder's manifest.tsv for one split, or for its first `hours`.

    Raises InputError if the folder has no manifest or the split has no recordings.
    """
    manifest = data / "manifest.tsv"
    if not manifest.is_file():
        raise InputError(f"{data}: no manifest.tsv there")
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] == split]
    if hours is not None:
        ends = itertools.accumulate(float(row["seconds"]) for row in rows)
        rows = [row for row, end in zip(rows, ends, strict=True) if end <= hours * 3600]
    if not rows:
        raise InputError(f"{manifest}: no recordings with split {split!r}")
    return rows


def half(corpus: Corpus, which: str) -> frozenset[str]:
    """The speakers of one of two HALVES of a split: settings are chosen on `tuning` and reported on `testing`.

    Within a corpus and sex, speakers are ordered by amount of speech; of every two neighbours, the one with more speech
    goes to the half with less so far. So the halves are balanced in number of speakers and in speech, by corpus and
    sex. The same recordings give the same halves.
    """
    amounts: dict[tuple[str, str, str], int] = {}
    for clip in corpus.clips:
        who = clip.corpus, clip.sex, clip.speaker
        amounts[who] = amounts.get(who, 0) + clip.samples
    ordered = sorted(amounts, key=lambda who: (*who[:2], -amounts[who], who[2]))
    found: dict[str, list[str]] = {name: [] for name in HALVES}
    have = dict.fromkeys(HALVES, 0)
    for _, alike in itertools.groupby(ordered, key=lambda who: who[:2]):
        while pair := list(itertools.islice(alike, 2)):
            for name, who in zip(sorted(HALVES, key=lambda name: have[name]), pair, strict=False):
                found[name].append(who[2])
                have[name] += amounts[who]
    return frozenset(found[which])


def load_corpus(data: Path, split: str, rate: int, cache: Path, hours: float | None = None) -> Corpus:
    """Reads the manifest's `split`, or its first `hours`; the first call decodes, downmixes and resamples it into
    `cache`.

    Raises InputError if the folder has no manifest or the split has no recordings.
    """
    rows = read_manifest(data, split, hours)
    cache.mkdir(parents=True, exist_ok=True)
    samples_file, index_file = cache / f"{split}.int16", cache / f"{split}.json"
    if not index_file.is_file():
        _decode(data, rows, rate, samples_file, index_file)
    clips = [Clip(**clip) for clip in json.loads(index_file.read_text())]
    if [clip.path for clip in clips] != [row["path"] for row in rows]:
        raise InputError(f"{cache} was made from another manifest: remove it")
    clips = [replace(clip, sex=row.get("sex") or "") for clip, row in zip(clips, rows, strict=True)]
    return Corpus(np.memmap(samples_file, np.int16, "r"), clips)


@contextmanager
def writing_manifest(data: Path) -> Iterator[Callable[[Iterable[str]], object]]:
    """Writes a folder's manifest.tsv atomically; yields the function that adds a row: path, split, corpus, speaker,
    sex, seconds, text."""
    with whole(data / "manifest.tsv") as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        table.writerow(["path", "split", "corpus", "speaker", "sex", "seconds", "text"])
        yield table.writerow


def _decode(data: Path, rows: list[dict[str, str]], rate: int, samples_file: Path, index_file: Path) -> None:
    from audiolm_cli.audio import files

    clips, offset = [], 0
    with whole(samples_file) as part, part.open("wb") as out:
        for row in rows:
            samples = files.read(data / row["path"], rate).samples
            out.write((np.clip(samples, -1, 1 - 2**-15) * 32768).round().astype(np.int16).tobytes())
            text, corpus = row.get("text", ""), row.get("corpus", "")
            clips.append(Clip(row["path"], row["speaker"], corpus, text, offset, len(samples)))
            offset += len(samples)
    with whole(index_file) as part:
        part.write_text(json.dumps([asdict(clip) for clip in clips]))
