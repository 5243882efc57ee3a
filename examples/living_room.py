"""Makes living_room.flac: 6 s of a validation piece as a phone might have recorded it in a living room.

    python examples/living_room.py FOLDER     # the folder of `make weights-piano`, with midi and headroom

An upright that drifts, a soft touch, a room with noise, a narrow band and MP3 (`training.corpora.piano_variety`), each
for certain and not as strong as it gets. Needs the extra `train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from audiolm_cli.audio import files
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.piano import read_piece
from audiolm_cli.training.corpora.piano_synth import Piano, room
from audiolm_cli.training.corpora.piano_variety import Variety, recorded

PIECE, SECONDS, SEED, PEAK = "grieg/grieg_wanderer.mid", 6, 1, 0.5
HOW = Variety(
    drift_chance=1, touch=(-6.0, -2.0), touch_chance=1, upright_chance=1, noise=(34.0, 38.0), noise_chance=1,
    band=(5500.0, 6500.0), band_chance=1, mp3=(40.0, 40.0), mp3_chance=1,
)  # fmt: skip


def make(folder: Path) -> np.ndarray:
    """The example, float32 [96000]."""
    collection = folder / "midi" / "piano-midi-de"
    piece = read_piece(collection / PIECE, collection)
    assert piece is not None
    assert piece.split == "valid"
    random = np.random.default_rng(SEED)
    notes = [note for note in piece.notes if note.onset < SECONDS]
    played = Piano.load(folder / "headroom").play(notes, SECONDS * RATE)
    sound = recorded(played, room(random), random, HOW)
    return sound * np.float32(PEAK / np.abs(sound).max())


if __name__ == "__main__":
    files.write(Path(__file__).with_name("living_room.flac"), make(Path(sys.argv[1])), RATE, {})
