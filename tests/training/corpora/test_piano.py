"""A corpus from MIDI performances: what is read from them, where they are cut, and the files that come of it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolm_cli.audio import files
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import piano, piano_synth
from audiolm_cli.training.corpora.data import load_corpus
from audiolm_cli.training.corpora.piano import Cut, Note, Piece
from audiolm_cli.training.corpora.piano_notes import read_notes
from tests.training.corpora.test_piano_synth import attacks, check_melody, loudness, melody, recordings

mido = pytest.importorskip("mido", reason="needs the extra 'train'")


def midi(path: Path, *events: tuple[int, Any]) -> Path:
    """Writes (tick, message) pairs; a tick is 1 ms until the tempo is set."""
    track, now = mido.MidiTrack(), 0
    for tick, message in sorted(events, key=lambda event: event[0]):
        track.append(message.copy(time=tick - now))
        now = tick
    path.parent.mkdir(parents=True, exist_ok=True)
    mido.MidiFile(ticks_per_beat=500, tracks=[track]).save(path)
    return path


def key(onset: int, end: int, note: int, velocity: int = 64, channel: int = 0) -> list[tuple[int, Any]]:
    on = mido.Message("note_on", note=note, velocity=velocity, channel=channel)
    return [(onset, on), (end, mido.Message("note_off", note=note, channel=channel))]


def pedal(tick: int, value: int) -> tuple[int, Any]:
    return tick, mido.Message("control_change", control=64, value=value)


def rounded(notes: Iterable[Note]) -> list[tuple[float, float, int]]:
    return [(round(note.onset, 3), round(note.end, 3), note.key) for note in notes]


def piece(seconds: float, name: str = "tune", composer: str = "satie") -> Piece:
    """Notes at random times, some seconds apart at the most."""
    onsets = np.cumsum(np.random.default_rng(len(name)).uniform(0.1, 1.5, round(2 * seconds)))
    onsets = onsets[onsets < seconds - 2]
    return Piece(name, "tunes", composer, tuple(Note(float(onset), float(onset) + 0.5, 60, 64) for onset in onsets))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections of five short performances and a piano: Ravel and Scarlatti are for validation."""
    folder = tmp_path_factory.mktemp("data")
    names = (
        "one/chopin/waltz",
        "one/ravel/boats",
        "one/beeth/sonata",
        "two/Beethoven, Ludwig, Bagatelle",
        "two/Ravel_x",
    )
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        onsets = 300 + np.cumsum(random.integers(400, 1400, 80))
        notes = zip(onsets, random.integers(40, 88, 80), random.integers(20, 110, 80), strict=True)
        events = [
            event for onset, note, loud in notes for event in key(int(onset), int(onset) + 350, int(note), int(loud))
        ]
        midi(folder / "midi" / f"{name}.mid", *events)
    for (layer, note), sound in recordings().items():
        (folder / "headroom").mkdir(exist_ok=True)
        files.write(folder / "headroom" / f"level{layer}_{note:03d}.flac", sound[:RATE], RATE, {})
    return folder


def make(data: Path, out: Path, seconds: float = 200, processes: int = 1, **options: Any) -> list[dict[str, str]]:
    """The manifest's rows, of the sampled piano alone unless told otherwise."""
    asked = piano.CorpusOptions(seconds / 3600, **({"timbres": ("sampled",)} | options))
    made = piano.make(data, out, asked, processes)
    assert made <= seconds
    with (out / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_notes_follow_the_tempo(tmp_path):
    slower = mido.MetaMessage("set_tempo", tempo=1_000_000)
    path = midi(tmp_path / "a.mid", *key(100, 300, 60), (1000, slower), *key(1500, 1600, 62))
    assert rounded(piano.performance(path)) == [(0.1, 0.3, 60), (2.0, 2.2, 62)]


def test_the_pedal_holds_notes(tmp_path):
    early, late, high = key(0, 100, 60), key(300, 900, 62), key(50, 60, 100)
    path = midi(tmp_path / "a.mid", pedal(40, 127), *early, *late, *high, pedal(500, 20), pedal(4000, 127))
    ring = 0.05 + piano.RING  # a key without a damper
    assert rounded(piano.performance(path)) == [(0.0, 0.5, 60), (0.05, ring, 100), (0.3, 0.9, 62)]


def test_a_key_has_one_sound_at_a_time(tmp_path):
    repeated = [*key(0, 800, 60), *key(400, 600, 60)]
    doubled = [*key(1000, 1200, 64, 30), *key(1000, 1500, 64, 90)]
    path = midi(tmp_path / "a.mid", *repeated, *doubled)
    notes = piano.performance(path)
    assert rounded(notes) == [(0.0, 0.4, 60), (0.4, 0.8, 60), (1.0, 1.5, 64)]
    assert notes[-1].velocity == 90


def test_other_instruments_are_left_out(tmp_path):
    cello = (0, mido.Message("program_change", program=42, channel=3))
    grand = (0, mido.Message("program_change", program=1, channel=4))
    played = [*key(100, 200, 40, channel=9), *key(100, 200, 50, channel=3), *key(100, 200, 60, channel=4)]
    path = midi(tmp_path / "some" / "a.mid", cello, grand, *played, *key(100, 200, 10), *key(100, 10000, 110))
    assert rounded(piano.performance(path)) == [(0.1, 0.2, 60)]
    alone = midi(tmp_path / "some" / "b.mid", cello, *key(100, 200, 50, channel=3))
    assert piano.read_piece(alone, tmp_path / "some") is None


def test_what_is_no_midi_is_said_so(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"no music at all")
    with pytest.raises(InputError, match=r"a\.mid: not a MIDI file"):
        piano.performance(tmp_path / "a.mid")
    with pytest.raises(InputError, match=r"b\.mid: not a MIDI file"):
        piano.performance(tmp_path / "b.mid")


def test_pauses_are_shortened_and_the_beginning_is_dropped():
    notes = [Note(50.0, 51.0, 60, 64), Note(52.0, 60.0, 62, 64), Note(53.0, 54.0, 64, 64), Note(100.0, 101.0, 65, 64)]
    start, pause = piano.LEAD, piano.PAUSE
    expected = [(0, 1, 60), (2, 10, 62), (3, 4, 64), (10 + pause, 11 + pause, 65)]
    moved = piano.without_pauses(notes)
    assert rounded(moved) == [(onset + start, end + start, note) for onset, end, note in expected]
    endless = [Note(float(onset), onset + 1.0, 60, 64) for onset in range(round(piano.LONGEST) + 100)]
    assert piano.LONGEST - 2 < piano.without_pauses(endless)[-1].end <= piano.LONGEST


@pytest.mark.parametrize(
    ("path", "name", "composer"),
    [
        ("beeth/elise.mid", "beeth-elise", "beethoven"),
        ("Beethoven_Sonata_No_3.mid", "Beethoven_Sonata_No_3", "beethoven"),
        ("Chopin, Frédéric, Études, g0h-6_H.mid", "Chopin_Frederic_Etudes_g0h-6_H", "chopin"),
        ("Ravel, Maurice, Jeux d'eau.mid", "Ravel_Maurice_Jeux_d_eau", "ravel"),
    ],
)
def test_names_tell_the_composer(tmp_path, path, name, composer):
    found = piano.read_piece(midi(tmp_path / "some" / path, *key(0, 100, 60)), tmp_path / "some")
    assert found is not None
    assert (found.name, found.corpus, found.composer) == (name, "some", composer)
    assert found.split == ("valid" if composer in piano.VALID else "train")


@pytest.mark.parametrize("seconds", [15, 45, 59, 61, 90, 100, 300, 601])
def test_pieces_are_cut_before_attacks(seconds):
    tune = piece(seconds)
    places = piano.edges(tune)
    assert (places[0], places[-1]) == (0, tune.seconds)
    lengths = np.diff(places)
    assert lengths.max() <= 60
    assert lengths.min() >= 20 or len(lengths) == 1
    onsets = np.array([note.onset for note in tune.notes])
    for place in places[1:-1]:
        after = onsets[onsets > place][0]
        assert after - place <= piano.LEAD + 1e-6
        before = onsets[onsets < place][-1]
        near = (onsets > place - piano.NEAR / 2) & (onsets < place + piano.NEAR / 2)
        assert after - before >= np.diff(onsets[near]).max()


def test_further_passes_play_training_pieces_in_other_keys_and_tempi():
    tune, how = piece(100), piano.Variety()
    again = [piano.varied(tune, number, how, 0) for number in (1, 2)]
    assert len({again[0].name, again[1].name, tune.name}) == 3
    assert all(how.identity in other.name for other in again)
    assert again[0].notes != again[1].notes
    assert [other.split for other in again] == ["train"] * 2
    for other in again:
        assert len(other.notes) == len(tune.notes)
        assert other.seconds != pytest.approx(tune.seconds, abs=0.01)
        assert 0.84 < (other.seconds - piano.TAIL) / (tune.seconds - piano.TAIL) < 1.19
    assert piano.varied(tune, 1, piano.Variety(semitones=3), 0).name != again[0].name
    high = piece(100)._replace(notes=(Note(0.1, 0.3, 86, 64), Note(4.0, 4.2, 60, 64)))
    ends = {note.key: note.end - note.onset for n in range(1, 100) for note in piano.varied(high, n, how, 0).notes}
    assert {key for key, seconds in ends.items() if seconds >= piano.RING} == {89, 90, 91}  # where dampers end


def test_first_passes_are_planned_first():
    tune, other = piece(100, "tune"), piece(100, "other one")
    pieces = [tune, other, *(piano.varied(each, 1, piano.Variety(), 0) for each in (tune, other))]
    alone, full = piano.plan(pieces[:2], 10), piano.plan(pieces, 10)
    assert full[: len(alone)] == alone
    assert {cut.piece.number for cut in full[len(alone) :]} == {1}


def test_what_is_too_short_is_left_out():
    assert piano.edges(piece(6)) == []


def test_a_plan_takes_as_much_of_every_piece_and_never_more_than_asked():
    pieces = [
        piece(seconds, name, composer)
        for seconds, name, composer in zip(
            (300, 600, 120, 900),
            ("one", "three", "fifteen", "some more"),
            ("satie", "ravel", "satie", "bizet"),
            strict=True,
        )
    ]
    full = piano.plan(pieces, 10)
    total = sum(tune.seconds for tune in pieces)
    assert sum(cut.end - cut.start for cut in full) / RATE == pytest.approx(total, abs=0.01)
    half = piano.plan(pieces, total / 7200)
    assert half == full[: len(half)]
    taken = dict.fromkeys([tune.name for tune in pieces], 0.0)
    for cut in half:
        taken[cut.piece.name] += (cut.end - cut.start) / RATE
    assert total / 2 - 60 < sum(taken.values()) <= total / 2
    assert all(abs(taken[tune.name] - tune.seconds / 2) < 60 for tune in pieces)
    assert half != piano.plan(pieces, total / 7200, seed=1)
    assert len({cut.path for cut in full}) == len(full)
    assert {cut.timbre for cut in piano.plan(pieces, 10, ("fluidsynth",))} == {"fluidsynth"}


def test_both_pianos_play_and_no_piece_is_played_by_both():
    cuts = piano.plan([piece(120, f"tune {n}") for n in range(60)], 10)
    pairs = {(cut.piece.name, cut.timbre) for cut in cuts}
    assert len(pairs) == 60
    assert 10 < sum(timbre == "fluidsynth" for _, timbre in pairs) < 30


def test_a_piece_is_played_note_by_note(data):
    tune = Piece("tune", "tunes", "satie", tuple(melody()))
    sound = piano.render(tune, "sampled", data, 0)
    assert len(sound) == round(tune.seconds * RATE)
    check_melody(sound, tune.notes)


def test_the_pedal_and_the_velocity_are_heard(data, tmp_path):
    def play(*events):
        notes = piano.performance(midi(tmp_path / "a.mid", *events))
        return piano_synth.Piano.load(data / "headroom").play(notes, RATE)

    part = slice(RATE * 6 // 10, RATE * 8 // 10)
    dry, held = play(*key(0, 300, 60)), play(pedal(100, 127), *key(0, 300, 60), pedal(900, 0))
    assert loudness(held[part]) > loudness(dry[part]) + 20
    assert loudness(play(*key(0, 300, 60, 100))) > loudness(play(*key(0, 300, 60, 30))) + 10


def test_the_corpus_is_what_training_reads(data, tmp_path):
    rows = make(data, tmp_path / "out", 300)
    assert {row["corpus"] for row in rows} == {"one", "two"}
    both = {split: load_corpus(tmp_path / "out", split, RATE, tmp_path / "cache") for split in ("train", "valid")}
    pieces = {split: {clip.speaker for clip in corpus.clips} for split, corpus in both.items()}
    assert pieces["valid"] == {"ravel-boats", "Ravel_x"}
    assert pieces["train"] == {"chopin-waltz", "beeth-sonata", "Beethoven_Ludwig_Bagatelle"}
    for row in rows:
        sound = files.read(tmp_path / "out" / row["path"], RATE).samples
        assert len(sound) / RATE == pytest.approx(float(row["seconds"]), abs=0.001)
        assert 20 <= len(sound) / RATE <= 60
        assert 0.02 < np.abs(sound).max() < 0.95
        assert attacks(sound)[0] < 2 * piano.LEAD


def test_the_notes_of_every_file_are_known(data, tmp_path):
    rows = make(data, tmp_path, 600, passes=2)
    known = read_notes(tmp_path)
    assert list(known) == [row["path"] for row in rows]
    assert any("-1-sampled-" in path for path in known)
    for path, notes in known.items():
        sound = files.read(tmp_path / path, RATE).samples
        heard, onsets = attacks(sound), notes[:, 0]
        assert (notes[:, 1] > 0).all()
        assert onsets.max() < len(sound) / RATE
        off = [np.abs(heard - onset).min() for onset in onsets[onsets > 0]]
        assert np.median(off) < 0.02, path
    with pytest.raises(InputError, match=r"notes\.npz is missing"):
        read_notes(tmp_path / "one")


def test_loud_and_soft_parts_of_a_piece_stay_so(data):
    notes = [Note(0.05 + n, 0.8 + n, 60, 30 if n < 20 else 100) for n in range(40)]
    sound = piano.render(Piece("tune", "tunes", "satie", tuple(notes)), "sampled", data, 0)
    dry = piano_synth.Piano.load(data / "headroom").play(notes, len(sound))
    quiet, loud = slice(0, 20 * RATE), slice(20 * RATE, 40 * RATE)
    contrast = loudness(dry[loud]) - loudness(dry[quiet])
    assert loudness(sound[loud]) - loudness(sound[quiet]) == pytest.approx(contrast, abs=1)


def test_the_same_seed_makes_the_same_files(data, tmp_path):
    for name, options in {"a": {}, "b": {"processes": 2}, "c": {"seed": 1}}.items():
        make(data, tmp_path / name, **options)
    first, same, other = (contents(tmp_path / name) for name in "abc")
    assert first == same
    assert not set(first) & set(other) - {"manifest.tsv", "notes.npz"}


def test_what_is_there_is_kept_and_what_is_missing_is_made_again(data, tmp_path, monkeypatch):
    make(data, tmp_path, 150)
    few = contents(tmp_path)
    lost = next(path for path in sorted(few) if path.endswith(".flac"))
    (tmp_path / lost).unlink()
    make(data, tmp_path, 150)
    assert contents(tmp_path) == few
    make(data, tmp_path, 300)
    more = contents(tmp_path)
    assert more["manifest.tsv"].startswith(few.pop("manifest.tsv"))
    assert few.pop("notes.npz") != more["notes.npz"]
    assert few.items() < more.items()

    def unwanted(*arguments: object) -> np.ndarray:
        raise AssertionError("played again")

    monkeypatch.setattr(piano, "render", unwanted)  # in the processes too, which are forked or, if not, import anew
    cuts = [Cut(path, piece(20), "sampled", 0, RATE) for path in more if path.endswith(".flac")]
    assert piano.record(cuts, data, tmp_path, 0) == len(cuts)


@pytest.mark.slow
def test_fluidsynth_plays_a_share(data, tmp_path):
    try:
        piano_synth.sound_font()
    except UsageError as error:
        pytest.skip(str(error))
    rows = make(data, tmp_path, timbres=("fluidsynth",))
    assert all("-fluidsynth-" in row["path"] for row in rows)
    sound = files.read(tmp_path / rows[0]["path"], RATE).samples
    assert attacks(sound)[0] < 2 * piano.LEAD
    assert 0.02 < np.abs(sound).max() < 0.95


def test_errors_are_one_line(data, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["piano", *map(str, arguments)])
        piano.main()

    out = ("--out", tmp_path / "out", "--timbres", "sampled")
    with pytest.raises(SystemExit, match=r"^piano: .*midi: no folders with \*\.mid there$"):
        run("--data", tmp_path, *out)
    midi(
        tmp_path / "midi" / "some" / "a.mid", *(event for n in range(20) for event in key(n * 1000, n * 1000 + 500, 60))
    )
    with pytest.raises(SystemExit, match=r"^piano: .*headroom: no recordings of piano keys there"):
        run("--data", tmp_path, *out)
    monkeypatch.setattr(piano_synth, "SOUND_FONTS", ())
    monkeypatch.setattr(piano_synth.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"^piano: fluidsynth is not installed"):
        run("--data", data, "--out", tmp_path / "out")
    run("--data", data, *out, "--hours", 0.04)
    assert "hours in" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(SystemExit, match=r"^piano: mido is not installed"):
        run("--data", data, *out)


def test_more_passes_keep_what_one_made_and_never_vary_validation(data, tmp_path):
    plain = make(data, tmp_path / "one", 5000)
    rows = make(data, tmp_path / "two", 5000, passes=2)
    assert rows[: len(plain)] == plain
    assert rows[len(plain) :]
    more = rows[len(plain) :]
    assert {row["split"] for row in more} == {"train"}
    assert {row["speaker"] for row in more}.isdisjoint(row["speaker"] for row in plain)
    assert len({row["speaker"] for row in more}) == len({row["speaker"] for row in plain if row["split"] == "train"})
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert all(two[name] == one[name] for name in one if name.endswith(".flac"))
    assert make(data, tmp_path / "again", 5000, passes=2) == rows
    assert contents(tmp_path / "again") == two
