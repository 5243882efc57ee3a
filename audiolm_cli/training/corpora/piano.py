"""Makes a corpus of piano music from MIDI performances: two pianos play them, a sampled grand and FluidSynth's.

    python -m audiolm_cli.training.corpora.piano --data DATA --out runs/piano_corpus --hours 15 [--processes 2]

Reads DATA/midi/COLLECTION/**/*.mid and the recorded keys DATA/headroom/levelLAYER_KEY.flac, and writes 16 kHz mono
FLAC files, the manifest.tsv that `data` reads (its `speaker` is the piece), and the notes of each file
(`piano_notes`). Every piece is played once, by one of the pianos, in its own room and at its own level, and cut
before attacks into 20 to 60 s. Fewer hours than available take equal shares of every piece, and more hours keep what
fewer ones took. Composers in VALID are the validation split, with all their works: the same work may occur twice, by
different players under different names, but not in both splits.

With --passes each training piece is played again and again, each time in another key and tempo and as if recorded
elsewhere (`piano_variety`); the first pass and the validation split stay as they are without.

The same data, seed, timbres and variety give the same corpus. Existing files are kept, so an interrupted run resumes;
names of further passes say which settings made them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from multiprocessing import Pool
from multiprocessing.pool import Pool as WorkerPool
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before numpy: spinning threads starve a busy machine

import numpy as np

from audiolm_cli.audio import files
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import writing_manifest
from audiolm_cli.training.corpora.piano_notes import between, write_notes
from audiolm_cli.training.corpora.piano_synth import HELD, Note, Piano, convolved, fluidsynth, room_response, sound_font
from audiolm_cli.training.corpora.piano_variety import Variety, heard, performed, recorded

TIMBRES = ("sampled", "fluidsynth")
FLUIDSYNTH_SHARE = 1 / 3  # of the pieces, if both pianos play
VALID = ("grieg", "granados", "scarlatti", "ravel", "scriabin")  # 5 % of the hours; from the baroque to impressionism
COMPOSERS = {  # folders of piano-midi.de with shortened names
    "balakir": "balakirev",
    "beeth": "beethoven",
    "burgm": "burgmueller",
    "muss": "mussorgsky",
    "tschai": "tchaikovsky",
}

KEYS = range(21, 109)  # of a piano, as MIDI numbers: A0 to C8
UNDAMPED = 89  # a piano has no dampers from this key on: keys ring on when released
RING = 2.5  # s, minimum sounding time of those keys
PAUSE = 2.0  # s; longer silences are cut down to this
LONGEST = 3500.0  # s of a performance, the most that `audio` reads; the rest is left out
CUT, NEAR = 30.0, 4.0  # s; pieces are cut into equal parts of at least CUT, and then up to NEAR earlier or later
SHORTEST = 10.0  # s; shorter pieces are left out
LEAD, TAIL = 0.05, 1.5  # s before the first attack and after the last release

PEAK = 0.9
LEVELS = (-28.0, -20.0)  # dB below full scale: the range of the pieces' RMS


class Piece(NamedTuple):
    """A performance; `name` is unique and fit for files, `seconds` ends after its last note. `number` is its pass, and
    the first one has no `variety`."""

    name: str
    corpus: str
    composer: str
    notes: tuple[Note, ...]
    number: int = 0
    variety: Variety | None = None

    @property
    def seconds(self) -> float:
        return max(note.end for note in self.notes) + TAIL

    @property
    def split(self) -> str:
        return "valid" if self.composer in VALID else "train"


class Cut(NamedTuple):
    """Samples `start` to `end` of a piece, and their file, relative to the corpus."""

    path: str
    piece: Piece
    timbre: str
    start: int
    end: int


def performance(path: Path) -> list[Note]:
    """The notes of a MIDI file in order of onset, with ends determined by dampers and the sustain pedal.

    Omits drums and programs other than pianos (GM 9 and up). Raises InputError for anything but a MIDI file.
    """
    import mido

    down: dict[tuple[int, int], list[tuple[float, int]]] = {}  # by channel and key: onsets and velocities
    let_go: list[tuple[float, int, int]] = []  # released while the pedal is down: onset, key, velocity
    programs: dict[int, int] = {}
    found, now, pedal = [], 0.0, False
    try:
        for message in mido.MidiFile(path, clip=True):
            now += message.time
            if message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "control_change" and message.control == 64:
                pedal = message.value >= 64
                if not pedal:
                    found += [Note(onset, now, key, velocity) for onset, key, velocity in let_go]
                    let_go.clear()
            elif message.type == "note_on" and message.velocity:
                if message.note in KEYS and message.channel != 9 and programs.get(message.channel, 0) < 8:
                    down.setdefault((message.channel, message.note), []).append((now, message.velocity))
            elif message.type in ("note_on", "note_off") and down.get((message.channel, message.note)):
                # if two voices share a key, the first to start is the first to end
                onset, velocity = down[message.channel, message.note].pop(0)
                if pedal:
                    let_go.append((onset, message.note, velocity))
                else:
                    found.append(Note(onset, now, message.note, velocity))
    except (OSError, EOFError, ValueError, TypeError, LookupError, mido.KeySignatureError) as error:
        raise InputError(f"{path}: not a MIDI file ({error})") from None
    found += [Note(onset, now, key, velocity) for onset, key, velocity in let_go]
    found += [Note(onset, now, key, velocity) for (_, key), begun in down.items() for onset, velocity in begun]
    return _one_per_key(found)


def _one_per_key(found: Iterable[Note]) -> list[Note]:
    """Ends a note at the next one of its key, and merges notes struck twice at once; undamped keys ring on."""
    by_key: dict[int, list[Note]] = {}
    for note in sorted(found, key=lambda note: (note.key, note.onset, note.velocity)):
        struck = by_key.setdefault(note.key, [])
        if struck and note.onset - struck[-1].onset < 0.005:
            note = note._replace(onset=struck[-1].onset, end=max(note.end, struck[-1].end))  # the louder one stays
            struck.pop()
        struck.append(note)
    notes = []
    for key, struck in by_key.items():
        nexts = [note.onset for note in struck[1:]] + [np.inf]
        for note, following in zip(struck, nexts, strict=True):
            end = max(note.end, note.onset + RING) if key >= UNDAMPED else note.end
            notes.append(note._replace(end=min(end, note.onset + HELD, following)))
    return sorted(notes)


def without_pauses(notes: Sequence[Note]) -> tuple[Note, ...]:
    """The same notes starting at LEAD, with silences of at most PAUSE, up to LONGEST."""
    moved, sounding = [], notes[0].onset
    earlier = sounding - LEAD
    for note in notes:
        earlier += max(0.0, note.onset - sounding - PAUSE)
        sounding = max(sounding, note.end)
        if note.end - earlier <= LONGEST:
            moved.append(note._replace(onset=note.onset - earlier, end=note.end - earlier))
    return tuple(moved)


def read_piece(path: Path, collection: Path) -> Piece | None:
    """A file of a collection, or None if it has no piano. Raises InputError.

    Its composer is its folder, or else the first word of its name.
    """
    relative = path.relative_to(collection).with_suffix("")
    plain = unicodedata.normalize("NFKD", "-".join(relative.parts)).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", plain)
    composer = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    notes = performance(path)
    if not notes:
        return None
    return Piece(name, collection.name, COMPOSERS.get(composer, composer), without_pauses(notes))


def read_pieces(data: Path, pool: WorkerPool) -> list[Piece]:
    """All performances of DATA/midi that have a piano, in order. Raises InputError if there are no files."""
    files = [(path, folder) for folder in sorted((data / "midi").glob("*")) for path in sorted(folder.rglob("*.mid"))]
    if not files:
        raise InputError(f"{data / 'midi'}: no folders with *.mid there")
    return [piece for piece in pool.starmap(read_piece, files, chunksize=4) if piece is not None]


def varied(piece: Piece, number: int, variety: Variety, seed: int) -> Piece:
    """The piece of pass `number`, from 1 on, in another key and tempo."""
    named = piece._replace(name=f"{piece.name}-{variety.identity}-{number}", number=number, variety=variety)
    moved = performed(piece.notes, _random(seed, named, 2), variety, KEYS)
    return named._replace(notes=without_pauses(_one_per_key(moved)))


def edges(piece: Piece) -> list[float]:
    """Where to cut a piece, in s, including its start and end; empty if it is too short.

    Its parts are equally long, except that each cut moves to the nearby attack that follows the longest wait.
    """
    if piece.seconds < SHORTEST:
        return []
    onsets = np.array([note.onset for note in piece.notes])
    waits = np.diff(onsets, prepend=0.0)
    places, count = [0.0], max(1, int(piece.seconds / CUT))
    for place in np.arange(1, count) * piece.seconds / count:
        near = np.flatnonzero(np.abs(onsets - place) <= NEAR)
        if len(near):
            best = near[waits[near].argmax()]
            place = onsets[best] - min(LEAD, waits[best] / 2)
        places.append(float(place))
    return [*places, piece.seconds]


def plan(pieces: Iterable[Piece], hours: float, timbres: Sequence[str] = TIMBRES, seed: int = 0) -> list[Cut]:
    """The corpus's cuts, at most `hours` of them, as evenly distributed over the pieces as possible.

    More hours take the same cuts first, those of earlier passes before those of later ones.
    """
    ranked = []
    for piece in pieces:
        random = _random(seed, piece)
        by_fluidsynth = random.random() < FLUIDSYNTH_SHARE
        timbre = timbres[0] if len(timbres) == 1 else TIMBRES[by_fluidsynth]
        parts = [(round(start * RATE), round(end * RATE)) for start, end in pairwise(edges(piece))]
        first = random.random()
        for place, index in enumerate(random.permutation(len(parts))):
            start, end = parts[index]
            path = f"{piece.corpus}/{piece.name}-{timbre}-s{seed}-{start * 1000 // RATE:07d}.flac"
            share = (place + first) / len(parts)
            ranked.append(((piece.number, share), Cut(path, piece, timbre, start, end)))
    taken, rest = [], round(hours * 3600 * RATE)
    for _, cut in sorted(ranked, key=lambda entry: (entry[0], entry[1].path)):
        rest -= cut.end - cut.start
        if rest < 0:
            break
        taken.append(cut)
    return taken


def _random(seed: int, piece: Piece, purpose: int = 0) -> np.random.Generator:
    digest = hashlib.sha256(f"{piece.corpus}/{piece.name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big"), purpose])


_piano = cache(Piano.load)  # one per process


def render(piece: Piece, timbre: str, data: Path, seed: int) -> np.ndarray:
    """A whole piece, float32 [T]: played, in a room, at a level that preserves its dynamics."""
    samples = round(piece.seconds * RATE)
    if timbre == "fluidsynth":
        played = fluidsynth(piece.notes, samples, sound_font())
    else:
        played = _piano(data / "headroom").play(piece.notes, samples)
    random = _random(seed, piece, 1)
    if piece.variety is None:
        sound = convolved(played, room_response(random))
    else:
        sound = recorded(played, room_response(random), random, piece.variety)
    level = 10 ** (random.uniform(*LEVELS) / 20)
    return sound * np.float32(min(level / np.sqrt(np.mean(np.square(sound)) + 1e-12), PEAK / np.abs(sound).max()))


def heard_notes(piece: Piece, seed: int) -> tuple[Note, ...]:
    """The piece's notes at the times at which they are heard in what `render` makes."""
    random = _random(seed, piece, 1)
    room_response(random)
    return heard(piece.notes, round(piece.seconds * RATE), random, piece.variety) if piece.variety else piece.notes


def notes_of(cuts: Sequence[Cut], seed: int) -> dict[str, np.ndarray]:
    """The notes `[N, 4]` of each of a piece's cuts, by its file."""
    notes = heard_notes(cuts[0].piece, seed)
    return {cut.path: between(notes, cut.start / RATE, cut.end / RATE) for cut in cuts}


def record(cuts: Sequence[Cut], data: Path, out: Path, seed: int) -> float:
    """Writes a piece's missing cuts, and returns the seconds of all."""
    if missing := [cut for cut in cuts if not (out / cut.path).is_file()]:
        sound = render(missing[0].piece, missing[0].timbre, data, seed)
        (out / missing[0].path).parent.mkdir(parents=True, exist_ok=True)
        for cut in missing:
            files.write(out / cut.path, sound[cut.start : cut.end], RATE, {})
    return sum(cut.end - cut.start for cut in cuts) / RATE


@dataclass(frozen=True)
class CorpusOptions:
    """What decides a corpus: at most `hours`, the pianos, and how further `passes` vary the training pieces."""

    hours: float
    seed: int = 0
    timbres: Sequence[str] = TIMBRES
    passes: int = 1
    variety: Variety = field(default_factory=Variety)


def make(data: Path, out: Path, options: CorpusOptions, processes: int = 1) -> float:
    """Makes the corpus in `out`; returns its seconds: at most the `hours`, less if the pieces are too short.

    Raises InputError, and UsageError if FluidSynth is missing.
    """
    if "fluidsynth" in options.timbres:
        sound_font()
    seed = options.seed
    began, total = time.monotonic(), 0.0
    with Pool(processes) as pool:
        pieces = read_pieces(data, pool)
        out.mkdir(parents=True, exist_ok=True)
        train = [piece for piece in pieces if piece.split == "train"]
        for number in range(1, options.passes):
            pieces += [varied(piece, number, options.variety, seed) for piece in train]
        cuts = plan(pieces, options.hours, options.timbres, seed)
        by_piece: dict[tuple[str, str], list[Cut]] = {}
        for cut in cuts:
            by_piece.setdefault((cut.piece.corpus, cut.piece.name), []).append(cut)
        work = partial(record, data=data, out=out, seed=seed)
        for done, seconds in enumerate(pool.imap_unordered(work, by_piece.values()), 1):
            total += seconds
            if done % 20 == 0:
                spent = time.monotonic() - began
                print(f"{total / 3600:.2f} h, {total / spent:.0f} times real time", file=sys.stderr, flush=True)
        known: dict[str, np.ndarray] = {}
        for own in pool.imap_unordered(partial(notes_of, seed=seed), by_piece.values()):
            known |= own
    write_notes(out, ((cut.path, known[cut.path]) for cut in cuts))
    with writing_manifest(out) as list_row:
        for path, piece, _, start, end in cuts:
            list_row([path, piece.split, piece.corpus, piece.name, "", f"{(end - start) / RATE:.3f}", ""])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="A corpus of piano music, played from MIDI performances.")
    parser.add_argument("--data", type=Path, required=True, help="folder with midi and headroom")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings and manifest.tsv")
    parser.add_argument("--hours", type=float, default=15.0, help="of music to make at most")
    parser.add_argument("--processes", type=int, default=1, help="that play at once")
    parser.add_argument("--passes", type=int, default=1, help="over the training pieces; further ones vary them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timbres", nargs="+", choices=TIMBRES, default=TIMBRES, help="the pianos that play")
    options = parser.parse_args()
    try:
        asked = CorpusOptions(options.hours, options.seed, options.timbres, options.passes)
        seconds = make(options.data, options.out, asked, max(1, options.processes))
    except AudioLMError as error:
        sys.exit(f"piano: {error}")
    except ImportError as error:
        sys.exit(f"piano: {error.name} is not installed (extra train)")
    print(f"{seconds / 3600:.2f} hours in {options.out}")
    if seconds < 0.99 * options.hours * 3600:
        print("the pieces are too short for more", file=sys.stderr)


if __name__ == "__main__":
    main()
