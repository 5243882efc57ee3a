"""Two pianos that play notes, and rooms for them: samples of a grand piano, and FluidSynth with its sound font.

All audio is mono at 16 kHz.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiolm_cli.audio import files
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.training import RATE

HELD = 10.0  # s, the longest that a key sounds
VELOCITIES = (22, 44, 66, 88, 110)  # of the layers as recorded
FADE = ((21, 88), (0.15, 0.04))  # keys, and time constants in s of their dampers
STRETCH = 20.0  # cents: more than other pianos deviate from equal temperament; keys recorded further off are retuned
SOUND_FONTS = ("/usr/share/sounds/sf2/FluidR3_GM.sf2", "/usr/share/sounds/sf2/default-GM.sf2")


class Note(NamedTuple):
    """A key that sounds from `onset` to `end`, s; a damper or the key's next attack ends it."""

    onset: float
    end: float
    key: int
    velocity: int


class Piano:
    """A piano recorded key by key in several layers, from quiet to loud.

    `recordings`: float32 [T] at 16 kHz by layer and key, at their recorded levels; every layer has the same keys, at
    most three apart. Other keys are the nearest one resampled, by a semitone. Raises InputError if some are missing.
    """

    def __init__(self, recordings: Mapping[tuple[int, int], np.ndarray]) -> None:
        layers = sorted({layer for layer, _ in recordings})
        self.keys = np.array(sorted({key for _, key in recordings}))
        if missing := [f"level{i}_{key:03d}" for i in layers for key in self.keys if (i, key) not in recordings]:
            raise InputError(f"recordings of piano keys are missing: {', '.join(missing)}")
        if len(layers) != len(VELOCITIES):
            raise InputError(f"a piano of {len(VELOCITIES)} layers is needed: there are {len(layers)}")
        self.attacks = [[_attack(recordings[i, int(key)]) for key in self.keys] for i in layers]
        self.sharp = [_sharp(int(key), [layer[j] for layer in self.attacks]) for j, key in enumerate(self.keys)]
        half = RATE // 2
        energies = [[np.sum(np.square(x[:half]), dtype=float) / half for x in layer] for layer in self.attacks]
        self.recorded = 10 * np.log10(np.array(energies) + 1e-12)  # dB, [layers, keys]
        # single keys were recorded up to 10 dB louder than their neighbours, in all layers: the microphone's place
        weights = np.maximum(0, 9 - np.abs(self.keys[:, None] - self.keys))
        even = self.recorded @ (weights / weights.sum(0))
        self.even = np.maximum.accumulate(even, axis=0)
        self.tuned: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def load(cls, folder: Path) -> Piano:
        """Reads levelLAYER_KEY.flac. Raises InputError."""
        found = {path: re.fullmatch(r"level(\d+)_(\d+)", path.stem) for path in sorted(folder.glob("level*_*.flac"))}
        if not found:
            raise InputError(f"{folder}: no recordings of piano keys there, level1_021.flac and so on")
        return cls({(int(m[1]), int(m[2])): files.read(path, RATE).samples for path, m in found.items() if m})

    def loudness(self, key: int, velocity: float) -> float:
        """The level of a key's first half second, dB: monotonic in velocity, and the layers' own at VELOCITIES."""
        layers = [float(np.interp(key, self.keys, layer)) for layer in self.even]
        low = layers[0] - (layers[1] - layers[0]) * VELOCITIES[0] / (VELOCITIES[1] - VELOCITIES[0])
        high = layers[-1] + (layers[-1] - layers[-2]) * (127 - VELOCITIES[-1]) / (VELOCITIES[-1] - VELOCITIES[-2])
        return float(np.interp(velocity, (0, *VELOCITIES, 127), (low, *layers, high)))

    def note(self, key: int, velocity: int) -> tuple[np.ndarray, float]:
        """The sound of a held key, float32 [T] at 16 kHz, and the gain for its velocity."""
        layer = int(np.abs(np.array(VELOCITIES) - velocity).argmin())
        place = int(np.abs(self.keys - key).argmin())
        if (layer, key) not in self.tuned:
            cents = 100 * (key - int(self.keys[place])) - self.sharp[place]
            self.tuned[layer, key] = _resampled(self.attacks[layer][place], 2 ** (cents / 1200))
        gain = self.loudness(key, velocity) - self.recorded[layer, place]
        return self.tuned[layer, key], float(10 ** (gain / 20))

    def play(self, notes: Iterable[Note], samples: int) -> np.ndarray:
        """Renders notes, float32 [samples]. Released keys fade, low ones more slowly."""
        sound = np.zeros(samples + round(2 * HELD * RATE), np.float32)
        for note in notes:
            wave, gain = self.note(note.key, note.velocity)
            constant = np.interp(note.key, *FADE)
            begin, held = round(note.onset * RATE), min(len(wave), round((note.end - note.onset) * RATE))
            fade = np.exp(-np.arange(min(len(wave) - held, round(7 * constant * RATE))) / (constant * RATE))
            sound[begin : begin + held] += wave[:held] * gain
            sound[begin + held : begin + held + len(fade)] += wave[held : held + len(fade)] * (fade * gain)
        return sound[:samples]


def _attack(recording: np.ndarray) -> np.ndarray:
    """A recorded key from its attack on, for at most HELD, faded out, without rumble below the lowest key."""
    spectrum = np.fft.rfft(recording)
    spectrum *= np.clip((np.fft.rfftfreq(len(recording), 1 / RATE) - 15) / 10, 0, 1)
    samples = np.fft.irfft(spectrum, len(recording)).astype(np.float32)
    # in some recordings the hammer comes 30 ms late, after a key noise 20 dB below it
    before = round(0.003 * RATE)
    begin = max(0, int(np.argmax(np.abs(samples) > 0.1 * np.abs(samples).max())) - before)
    samples = samples[begin : begin + round(HELD * RATE)]
    samples[:before] *= np.linspace(0, 1, before, dtype=np.float32)
    out = min(RATE, len(samples) // 4)
    samples[len(samples) - out :] *= np.linspace(1, 0, out, dtype=np.float32) ** 2
    return samples


def _sharp(key: int, attacks: Sequence[np.ndarray]) -> float:
    """How many cents to lower a key so that it is within STRETCH of equal temperament; 0 for most."""
    if key < 84:
        return 0.0
    nominal, size = 440 * 2 ** ((key - 69) / 12), 2**17
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    near = np.abs(np.log2(np.maximum(frequencies, 1) / nominal)) < 1.5 / 12
    parts = [samples[RATE // 50 : RATE // 2] for samples in attacks]
    peaks = [np.abs(np.fft.rfft(part * np.hanning(len(part)), size))[near].argmax() for part in parts]
    cents = 1200 * np.log2(float(np.median(frequencies[near][peaks])) / nominal)
    return float(cents - np.clip(cents, -STRETCH, STRETCH))


def _resampled(samples: np.ndarray, ratio: float) -> np.ndarray:
    """Resamples to `ratio` times the pitch: truncates the spectrum or pads it with zeros."""
    length = round(len(samples) / ratio)
    return (np.fft.irfft(np.fft.rfft(samples), length) * (length / len(samples))).astype(np.float32)


def fluidsynth(notes: Iterable[Note], samples: int, font: str) -> np.ndarray:
    """Renders notes with FluidSynth's piano, float32 [samples], without reverb. Raises InputError on failure."""
    import mido

    events = [(note.end, 0, note.key, 0) for note in notes] + [(note.onset, 1, *note[2:]) for note in notes]
    track = mido.MidiTrack([mido.Message("program_change", program=0)])
    ticks = 0
    for seconds, on, key, velocity in sorted(events):  # a key is released before it is struck again
        now = round(seconds * 10000)
        track.append(mido.Message("note_on" if on else "note_off", note=key, velocity=velocity, time=now - ticks))
        ticks = now
    with tempfile.TemporaryDirectory() as folder:
        score, sound = os.path.join(folder, "score.mid"), os.path.join(folder, "sound.wav")
        mido.MidiFile(ticks_per_beat=5000, tracks=[track]).save(score)  # at 120 beats per minute: 0.1 ms per tick
        # its sound fonts exceed 8 kHz unfiltered: at twice the rate, less aliases
        command = ["fluidsynth", "-niq", "-R0", "-C0", "-g0.4", f"-r{2 * RATE}", "-Twav", "-Ofloat", "-F", sound]
        done = subprocess.run([*command, font, score], capture_output=True, text=True)
        played = files.read(sound, RATE).samples[:samples] if os.path.isfile(sound) else np.zeros(0, np.float32)
    if done.returncode or not played.any():  # it plays unreadable input as silence
        raise InputError(f"fluidsynth failed: {' '.join(done.stderr.split())}")
    return np.pad(played, (0, samples - len(played)))


def sound_font() -> str:
    """FluidSynth's sound font. Raises UsageError if it, or FluidSynth, is not installed."""
    if shutil.which("fluidsynth") is None:
        raise UsageError("fluidsynth is not installed; --timbres sampled does without it")
    for font in SOUND_FONTS:
        if os.path.isfile(font):
            return font
    raise UsageError(f"no sound font for fluidsynth, such as {SOUND_FONTS[0]}; --timbres sampled does without it")


def room_response(random: np.random.Generator) -> np.ndarray:
    """A room's impulse response, float32 [T]: the direct sound, a few early reflections and a tail of 0.2 to 0.7 s."""
    reverberation = random.uniform(0.2, 0.7)  # s, until the tail has decayed by 60 dB
    seconds = np.arange(round(reverberation * RATE)) / RATE
    noise = random.standard_normal(len(seconds))
    dull = np.convolve(noise, np.full(4, 0.25), "same")  # high frequencies decay faster, in the air and at the walls
    tail = dull * 10 ** (-3 * seconds / reverberation) + noise * 10 ** (-9 * seconds / reverberation)
    tail *= np.clip(seconds / 0.02, 0, 1)
    response = tail * np.sqrt(10 ** (random.uniform(-24, -12) / 10) / np.sum(tail**2))
    times = random.uniform(0.003, 0.04, 6)
    response[np.round(times * RATE).astype(int)] += random.choice((-1, 1), 6) * random.uniform(0.05, 0.2, 6)
    response[0] = 1
    return response.astype(np.float32)


def convolved(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolves audio with a room's response, float32 [T] of the same length; in blocks, as pieces may last an hour."""
    size = 2**17
    spectrum, step = np.fft.rfft(response, size), size - len(response) + 1
    sound = np.zeros(len(samples) + size, np.float32)
    for start in range(0, len(samples), step):
        block = np.fft.irfft(np.fft.rfft(samples[start : start + step], size) * spectrum, size)
        sound[start : start + size] += block.astype(np.float32)
    return sound[: len(samples)]
