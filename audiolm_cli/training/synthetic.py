"""Makes a corpus of synthetic speech from plain text, for pretraining stage 1: flite and espeak-ng read it aloud.

    python -m audiolm_cli.training.synthetic --text TEXTS --out runs/synthetic --hours 10 [--processes 2]

Reads every *.txt of a folder and writes 16 kHz mono FLAC files and the manifest.tsv that `data` reads. A passage is a
few sentences in a row, read by one voice drawn at random; every passage is read once before one is read again, by
another voice. 2 % of the passages are for validation, in every reading, and a sentence that occurs twice is read only
where it comes first: so none is in both splits. The same texts and seed give the same corpus. Files are named by what
is said in them and by whom, and one that is there already is kept: a run that was broken off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before numpy: spinning threads starve a busy machine

import numpy as np
import soundfile

from audiolm_cli import audio
from audiolm_cli.errors import AudioLMError, InputError, UsageError
from audiolm_cli.training.data import writing_manifest

RATE = 16000  # Hz
SECONDS = (3.0, 12.0)  # the least and the most that a recording lasts
LETTERS = (45, 170)  # of a sentence, at about 15 per second
PASSAGE = 8  # sentences that one voice reads in a row
READINGS = 20  # of a passage at most
VALID = 50  # one in so many passages is for validation
LEVEL = 10 ** (-24 / 20)  # RMS of every recording: -24 dB below full scale, as the real ones of this project have
PEAK = 0.95  # that louder moments may reach

FLITE = ("slt", "awb", "rms", "kal16")
FLITE_RATES = (18000, 17000, 16000, 15000, 14400)  # Hz; taken for 16 kHz, speech comes from a larger or smaller head
ESPEAK = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029")
ESPEAK_VARIANTS = (*(f"m{n}" for n in range(1, 8)), *(f"f{n}" for n in range(1, 6)))
FLITE_SHARE = 0.6  # of the passages; its voices come from recordings of people, espeak-ng's from formulas
HEADING = re.compile(r"(chapter|book|part|volume|stave|letter|contents|preface)\b.{0,60}", re.IGNORECASE | re.DOTALL)
SPOKEN = re.compile(r"[A-Za-z ,.;:!?'()-]+")  # sentences with anything else, such as digits, are left out
REPLACED = {"’": "'", "‘": "'", "“": "", "”": "", '"': "", "_": "", "—": ", ", "--": ", ", "æ": "ae"}
TITLES = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMessrs\.)(?<!\b[A-Z]\.)"


class Voice(NamedTuple):
    """A speaker: `engine` is flite or espeak-ng, `name` a voice of it."""

    engine: str
    name: str
    speed: float = 1.0
    rate: int = RATE  # Hz; its sound at this rate is taken for one at 16 kHz, which shifts pitch and resonances alike
    pitch: int = 50  # 0 to 99, espeak-ng's scale

    @property
    def speaker(self) -> str:
        return self.name.replace("+", "-") + ("" if self.rate == RATE else f"-{self.rate}")


class Passage(NamedTuple):
    """Sentences in a row: `book` is the file's name, `first` the number of the first sentence in it."""

    book: str
    first: int
    sentences: tuple[str, ...]


class Reading(NamedTuple):
    """A sentence, who reads it, and where that is written to, relative to the corpus."""

    path: str
    split: str
    voice: Voice
    sentence: str


Speak = Callable[[Voice, str], np.ndarray]  # -> float32 [T] at 16 kHz


def passages(folder: Path) -> list[Passage]:
    """The passages of all *.txt files of a folder, every sentence once. Raises InputError when there are none."""
    seen: set[str] = set()
    found = []
    for file in sorted(folder.glob("*.txt")):
        new = []
        for sentence in sentences(file.read_text(encoding="utf-8", errors="replace")):
            key = transcript(sentence)
            if key not in seen:
                seen.add(key)
                new.append(sentence)
        starts = range(0, len(new), PASSAGE)
        found += [Passage(file.stem, start, tuple(new[start : start + PASSAGE])) for start in starts]
    if not found:
        raise InputError(f"{folder}: no *.txt with sentences to read there")
    return found


def sentences(text: str) -> Iterator[str]:
    """The sentences of a book that last about as long as wanted: long ones parted at semicolons, short ones joined.

    Left out are Project Gutenberg's head and foot, headings, notes in brackets, and what has digits or other alphabets.
    """
    text = re.sub(r"\A.*?^\*\*\* ?START OF.*?$|^\*\*\* ?END OF.*\Z", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    text = re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", "", text)  # quotation marks, not apostrophes
    for paragraph in re.split(r"\n\s*\n", text):
        flat = re.sub(r"[ ,]*,[ ,]*", ", ", " ".join(paragraph.split()))
        if flat.isupper() or HEADING.fullmatch(flat) or flat[-1:] not in tuple(".!?"):
            continue
        together = ""
        for sentence in re.split(rf"{TITLES}(?<=[.!?]) (?=[A-Z])|(?<=[;:]) ", flat):
            together = f"{together} {sentence}".strip()
            if len(together) >= LETTERS[0]:
                if len(together) <= LETTERS[1] and SPOKEN.fullmatch(together):
                    yield together
                together = ""


def transcript(sentence: str) -> str:
    """A sentence as the manifest has it: lower-case words, without punctuation."""
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)*", sentence.lower()))


def voices(seed: int) -> dict[str, list[Voice]]:
    """All voices by engine. Each has a speed of its own, and espeak-ng's a pitch, drawn with the seed."""
    random = np.random.default_rng(seed)

    def speed() -> float:
        return round(float(random.uniform(0.85, 1.15)), 2)

    return {
        "flite": [Voice("flite", name, speed(), rate) for name in FLITE for rate in FLITE_RATES],
        "espeak-ng": [
            Voice("espeak-ng", f"{accent}+{variant}", speed(), pitch=int(random.integers(30, 70)))
            for accent in ESPEAK
            for variant in ESPEAK_VARIANTS
        ],
    }


def readings(found: Sequence[Passage], seed: int) -> Iterator[Reading]:
    """Who reads what: all passages in random order, then all again in another, READINGS times."""
    engines = voices(seed)
    for number in range(READINGS):
        random = np.random.default_rng((seed, number))
        for index in random.permutation(len(found)):
            passage = found[index]
            speakers = engines["flite" if random.random() < FLITE_SHARE else "espeak-ng"]
            voice = speakers[random.integers(len(speakers))]
            # Whatever else is read, a passage stays in its split: that depends on its words alone.
            split = "train" if _digest(" ".join(passage.sentences)) % VALID else "valid"
            for place, sentence in enumerate(passage.sentences, passage.first):
                said = f"{_digest(f'{voice} {sentence}'):016x}"
                yield Reading(f"{voice.speaker}/{passage.book}-{place:05d}-{said}.flac", split, voice, sentence)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def speak(voice: Voice, sentence: str) -> np.ndarray:
    """What the engine says, `float32 [T]` at 16 kHz, all at one level. Raises InputError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        sound = os.path.join(folder, "out.wav")
        if voice.engine == "flite":
            stretch = f"duration_stretch={RATE / voice.rate / voice.speed}"  # what the rate, below, does is undone
            command = ["flite", "-voice", voice.name, "--setf", stretch, "-t", sentence, "-o", sound]
        else:
            words_per_minute = str(round(175 * voice.speed))
            command = ["espeak-ng", "-v", voice.name, "-s", words_per_minute, "-p", str(voice.pitch), "-w", sound, "-z"]
            command += ["--", sentence]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not os.path.isfile(sound):
            raise InputError(f"{voice.engine} cannot say {sentence!r} with voice {voice.name}: {done.stderr.strip()}")
        samples = audio.read(sound, voice.rate).samples
    loudness = np.sqrt(np.mean(np.square(samples))) / LEVEL
    return (samples / max(loudness, np.abs(samples).max() / PEAK, 1e-9)).astype(np.float32)


def record(out: Path, reading: Reading, say: Speak = speak) -> float:
    """Writes a reading unless it is there, and returns its seconds; 0, and no file, if it lasts too short or long."""
    target = out / reading.path
    if target.is_file():
        return soundfile.info(target).duration
    samples = say(reading.voice, reading.sentence)
    seconds = len(samples) / RATE
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        return 0.0
    target.parent.mkdir(parents=True, exist_ok=True)
    audio.write(target, samples, RATE, {})
    return seconds


def make(text: Path, out: Path, hours: float, processes: int = 1, seed: int = 0, say: Speak = speak) -> float:
    """Makes the corpus in `out` until it lasts `hours`; returns its seconds, which are fewer where the texts are short.

    `say` has to be a function of a module where there are several processes. Raises InputError.
    """
    wanted = readings(passages(text), seed)
    out.mkdir(parents=True, exist_ok=True)
    total, listed, began = 0.0, set(), time.monotonic()
    with writing_manifest(out) as list_row:
        for reading, seconds in _recorded(wanted, out, processes, say):
            if seconds and reading.path not in listed:  # the same voice may read the same again
                listed.add(reading.path)
                row = [reading.path, reading.split, "synthetic", reading.voice.speaker, "", f"{seconds:.3f}"]
                list_row([*row, transcript(reading.sentence)])
                total += seconds
                if len(listed) % 500 == 0:
                    spent = time.monotonic() - began
                    print(f"{total / 3600:.2f} h, {total / spent:.0f} times real time", file=sys.stderr, flush=True)
            if total >= hours * 3600:
                break
    return total


def _recorded(wanted: Iterable[Reading], out: Path, processes: int, say: Speak) -> Iterator[tuple[Reading, float]]:
    """The readings in order with their seconds, as `record` makes them."""
    work, rest = partial(record, out, say=say), iter(wanted)
    if processes == 1:
        yield from ((reading, work(reading)) for reading in rest)
        return
    with Pool(processes) as pool:
        while batch := list(itertools.islice(rest, 16 * processes)):  # a pool would take all of an iterator at once
            yield from zip(batch, pool.map(work, batch, chunksize=4), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A corpus of synthetic speech, read from plain text.")
    parser.add_argument("--text", type=Path, required=True, help="folder with *.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings and manifest.tsv")
    parser.add_argument("--hours", type=float, default=10.0, help="of speech to make")
    parser.add_argument("--processes", type=int, default=1, help="that speak at once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        if missing := [engine for engine in ("flite", "espeak-ng") if shutil.which(engine) is None]:
            raise UsageError(f"{' and '.join(missing)} not installed")
        seconds = make(options.text, options.out, options.hours, max(1, options.processes), options.seed)
    except AudioLMError as error:
        sys.exit(f"synthetic: {error}")
    print(f"{seconds / 3600:.2f} hours in {options.out}")
    if seconds < options.hours * 3600:
        print("the texts are too short for more", file=sys.stderr)


if __name__ == "__main__":
    main()
