"""The notes that a corpus of piano music is played from, beside its recordings: notes.npz.

A note is a row of `float32 [4]`: onset and end in s from the recording's start, key as a MIDI number, velocity. Onsets
before the start are negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from audiolm_cli.bundles.bundle import whole
from audiolm_cli.errors import InputError

FILE = "notes.npz"


def write_notes(data: Path, notes: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes the notes `[N, 4]` of every recording, named by its path in the manifest."""
    paths, rows = zip(*notes, strict=True)
    with whole(data / FILE) as part, part.open("wb") as out:
        np.savez_compressed(out, paths=np.array(paths), counts=[len(own) for own in rows], notes=np.concatenate(rows))


def read_notes(data: Path) -> dict[str, np.ndarray]:
    """The notes `float32 [N, 4]` of every recording, by its path in the manifest. Raises InputError."""
    file = data / FILE
    if not file.is_file():
        raise InputError(f"{file} is missing: the corpus was made without its notes")
    with np.load(file) as found:
        paths, ends, notes = found["paths"].tolist(), found["counts"].cumsum(), found["notes"]
    return dict(zip(paths, np.split(notes, ends[:-1]), strict=True))


def between(notes: Iterable[tuple[float, float, int, int]], start: float, end: float) -> np.ndarray:
    """The notes that sound between two times in s, `[N, 4]` from the first on."""
    rows = [(note[0] - start, note[1] - start, note[2], note[3]) for note in notes if note[0] < end and note[1] > start]
    return np.array(rows, np.float32).reshape(-1, 4)
