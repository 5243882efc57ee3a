"""Synthetic speech, for stage 1: a text-to-speech engine reads books aloud.

    python -m audiolm_cli.training.corpora.synthetic --text TEXTS --data DATA --out runs/synthetic [--hours 200]

Reads every *.txt of TEXTS, one paragraph a line, and writes 16 kHz mono Ogg files and the manifest.tsv that `data`
reads. A recording is a passage: about a minute of consecutive sentences, across paragraphs, so that a language model
sees real context. The order of passages is random but depends only on texts and seed. Existing recordings are kept, so
an interrupted run resumes.

Sentences that share seven consecutive words with a transcript of DATA's validation split are skipped. The books of the
held-out authors (SOURCES.tsv in TEXTS names the authors) are the corpus's validation split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before numpy: spinning threads starve a busy machine

import numpy as np
import soundfile

from audiolm_cli.audio.files import resampled
from audiolm_cli.bundles.bundle import whole
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import read_manifest, writing_manifest

LEVEL = 10 ** (-24 / 20)  # RMS of a recording: 24 dB below full scale, like this project's real ones
PEAK = 0.95  # highest peak
QUALITY = 0.6  # libsndfile's compression level for Vorbis: about 35 kbit/s
SPEEDS = (0.85, 1.2)  # reading speed, random per passage
PAUSES = (0.3, 0.8)  # seconds between paragraphs
PASSAGE = (450, 900)  # letters, about 15 a second: a passage ends with a paragraph after the first, or at the second
SENTENCE = 500  # letters at most; longer ones are skipped
SHARED = 7  # consecutive words in common that make a sentence a copy of a transcript
HELD_OUT = ("Anna Sewell", "Willa Cather")  # authors, two for 1.1 of 30 million letters
LISTED = 500  # the manifest is rewritten after this many recordings
TITLES = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMessrs\.)(?<!\b[A-Z]\.)"
SENTENCE_END = re.compile(rf"{TITLES}(?<=[.!?…])[\"”’)\]]* +(?=[A-Z“‘\"'(])")

Ngrams = frozenset[tuple[str, ...]]
Speak = Callable[[str, float, int], np.ndarray]  # text, speed, seed -> float32 [T] at 16 kHz


class Passage(NamedTuple):
    """Consecutive sentences of one book (a file's name without suffix), a string per paragraph; `first` is the number
    of its first sentence in the book."""

    book: str
    first: int
    paragraphs: tuple[str, ...]
    split: str

    @property
    def path(self) -> str:
        """The path of its recording in the corpus."""
        return f"{self.book}/{self.first:05d}.ogg"

    @property
    def digest(self) -> int:
        """The random seed for reading it."""
        return int.from_bytes(hashlib.sha256("\n".join(self.paragraphs).encode()).digest()[:8], "big")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def ngrams(texts: Sequence[str], size: int = SHARED) -> Ngrams:
    """All runs of `size` words in the texts."""
    found: set[tuple[str, ...]] = set()
    for text in texts:
        words = words_of(text)
        found.update(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return frozenset(found)


def held_out_books(text: Path, authors: Sequence[str]) -> frozenset[str]:
    """The names, without suffix, of these authors' files. Raises InputError if one has none."""
    sources = text / "SOURCES.tsv"
    if not sources.is_file():
        return frozenset()
    with sources.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if missing := set(authors) - {row["author"] for row in rows}:
        raise InputError(f"{sources}: no author {sorted(missing)[0]!r} there")
    return frozenset(Path(row["file"]).stem for row in rows if row["author"] in authors)


def passages(text: Path, forbidden: Ngrams = frozenset(), held_out: frozenset[str] = frozenset()) -> list[Passage]:
    """The passages of all *.txt files of a folder, in order; none contains a run of words in `forbidden`.

    Raises InputError if there are none.
    """
    found = []
    for file in sorted(text.glob("*.txt")):
        split = "valid" if file.stem in held_out else "train"
        found += [Passage(file.stem, *rest, split) for rest in _passages(file.read_text(encoding="utf-8"), forbidden)]
    if not found:
        raise InputError(f"{text}: no *.txt with sentences to read there")
    return found


def _passages(book: str, forbidden: Ngrams) -> Iterator[tuple[int, tuple[str, ...]]]:
    """First sentence and paragraphs of a book's passages. A skipped sentence ends a passage."""
    paragraphs: list[list[str]] = []
    first = number = letters = 0
    for line in book.splitlines():
        if line.strip().rstrip('"”’)]_')[-1:] not in tuple(".!?…"):  # a heading, a verse
            continue
        paragraphs.append([])
        for sentence in sentences(line):
            unwanted = len(sentence) > SENTENCE or not ngrams([sentence]).isdisjoint(forbidden)
            if letters and (unwanted or letters + len(sentence) > PASSAGE[1]):
                yield first, tuple(" ".join(said) for said in paragraphs if said)
                paragraphs, letters = [[]], 0
            if not letters:
                first = number
            if not unwanted:
                paragraphs[-1].append(sentence)
                letters += len(sentence)
            number += 1
        if letters >= PASSAGE[0]:
            yield first, tuple(" ".join(said) for said in paragraphs if said)
            paragraphs, letters = [], 0
    if letters:
        yield first, tuple(" ".join(said) for said in paragraphs if said)


def sentences(paragraph: str) -> list[str]:
    """A paragraph's sentences, including quotation marks."""
    flat = " ".join(paragraph.replace("_", "").split())
    ends = [match.end() for match in SENTENCE_END.finditer(flat)]
    return [flat[a:b].strip() for a, b in zip([0, *ends], [*ends, len(flat)], strict=True) if flat[a:b].strip()]


@cache
def _hibari() -> Callable[..., np.ndarray]:
    from hibari import Hibari

    engine: Callable[..., np.ndarray] = Hibari(threads=1)
    return engine


def hibari(text: str, speed: float, seed: int) -> np.ndarray:
    """Speaks with hibari-tts (Apache-2.0, distilled from Kokoro-82M), voice `heart`. Raises ImportError without it."""
    return resampled(_hibari()(text, speed=speed, seed=seed), 24000, RATE)


ENGINES: dict[str, Speak] = {"hibari": hibari}


def record(out: Path, say: Speak, passage: Passage) -> float:
    """Writes a passage's recording unless it exists; returns its seconds."""
    target = out / passage.path
    if target.is_file():
        return float(soundfile.info(target).duration)
    random = np.random.default_rng(passage.digest)
    speed = float(random.uniform(*SPEEDS))
    parts: list[np.ndarray] = []
    for paragraph in passage.paragraphs:
        if parts:
            parts.append(np.zeros(round(float(random.uniform(*PAUSES)) * RATE), np.float32))
        parts.append(say(paragraph, speed, passage.digest))
    samples = np.concatenate(parts)
    loudness = np.sqrt(np.mean(np.square(samples))) / LEVEL
    samples = samples / max(loudness, np.abs(samples).max() / PEAK, 1e-9)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as part:
        soundfile.write(part, samples, RATE, format="OGG", subtype="VORBIS", compression_level=QUALITY)
    return len(samples) / RATE


def make(
    found: Sequence[Passage], out: Path, hours: float, say: Speak, name: str, processes: int = 1, seed: int = 0
) -> float:
    """Writes `hours` of corpus to `out`; returns its seconds, fewer if there are too few passages.

    With several processes, the engine `say` must be a module-level function. `name` is the speaker's name.
    """
    wanted = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    total, new, began = 0.0, 0.0, time.monotonic()
    there = {passage.path for passage in wanted if (out / passage.path).is_file()}
    with Pool(processes) as pool:
        for start in range(0, len(wanted), LISTED):  # a pool would consume a whole iterator at once
            batch = wanted[start : start + LISTED]
            for passage, seconds in zip(batch, pool.imap(partial(record, out, say), batch, chunksize=4), strict=True):
                row = [passage.path, passage.split, "synthetic", name, "", f"{seconds:.3f}"]
                rows.append([*row, " ".join(words_of(" ".join(passage.paragraphs)))])
                total += seconds
                new += 0 if passage.path in there else seconds
            with writing_manifest(out) as list_row:
                for row in rows:
                    list_row(row)
            speed = new / (time.monotonic() - began)
            print(f"{total / 3600:.2f} h, {speed:.0f} times real time", file=sys.stderr, flush=True)
            if total >= hours * 3600:
                break
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with *.txt")
    parser.add_argument("--data", type=Path, help="folder with manifest.tsv whose validation transcripts are not read")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings and manifest.tsv")
    parser.add_argument("--hours", type=float, default=200.0, help="of speech to make")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="hibari", help="that reads")
    parser.add_argument("--hold-out", nargs="*", default=HELD_OUT, help="authors whose books are for validation")
    parser.add_argument("--processes", type=int, default=1, help="that speak at once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        transcripts = validation_transcripts(options.data) if options.data else []
        books = held_out_books(options.text, options.hold_out)
        found = passages(options.text, ngrams(transcripts), books)
        say, name = ENGINES[options.engine], options.engine
        seconds = make(found, options.out, options.hours, say, name, max(1, options.processes), options.seed)
    except ImportError as error:
        sys.exit(f"synthetic: {error}: install the extra `speak`")
    except AudioLMError as error:
        sys.exit(f"synthetic: {error}")
    print(f"{seconds / 3600:.2f} hours in {options.out}")
    if seconds < options.hours * 3600:
        print("the texts are too short for more", file=sys.stderr)


def validation_transcripts(data: Path) -> list[str]:
    """The transcripts of a corpus's validation split. Raises InputError without a manifest."""
    return [row["text"] for row in read_manifest(data, "valid") if row["text"]]


if __name__ == "__main__":
    main()
