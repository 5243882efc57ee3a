"""Measures of sound, each a function of samples: `float32 [T]` at 16 kHz in [-1, 1] throughout.

Needs the packages of the extra `eval`, imported where they are used. Figures are averages over speakers of each
speaker's average, so that one who talks much does not count for more; intervals are 95 % by bootstrap over speakers.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

RATE = 16000  # Hz
VAD_FRAME = 480  # samples: 30 ms, the longest frame webrtcvad takes

T = TypeVar("T")


class Clip(NamedTuple):
    """A recording and who speaks in it: `samples` float32 [T], 16 kHz."""

    speaker: str
    samples: np.ndarray


class Figure(NamedTuple):
    """An average over speakers with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(
    groups: Sequence[T], statistic: Callable[[list[T]], float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval (low, high) of `statistic` when whole groups (speakers) are drawn anew with replacement."""
    random = np.random.default_rng(seed)
    draws = random.integers(len(groups), size=(resamples, len(groups)))
    values = [statistic([groups[i] for i in draw]) for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def figure(values: Iterable[tuple[str, float]]) -> Figure:
    """(speaker, value) pairs -> average over speakers; values that are NaN are left out; NaN if none is left."""
    by_speaker: dict[str, list[float]] = {}
    for speaker, value in values:
        if not np.isnan(value):
            by_speaker.setdefault(speaker, []).append(value)
    if not by_speaker:
        return Figure(np.nan, np.nan, np.nan)
    means = [float(np.mean(group)) for group in by_speaker.values()]
    return Figure(float(np.mean(means)), *bootstrap(means, lambda chosen: float(np.mean(chosen))))


def pesq(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Wideband PESQ (ITU-T P.862.2), 1.0 to 4.64; NaN where it finds no speech in either signal."""
    from pesq import PesqError
    from pesq import pesq as measure

    value = measure(RATE, reference, degraded, "wb", on_error=PesqError.RETURN_VALUES)
    return float(value) if value > 0 else float("nan")


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), 0 to 1."""
    from pystoi import stoi as measure

    return float(measure(reference, degraded, RATE))


@functools.cache
def _mel_filters() -> np.ndarray:
    import librosa

    return librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, norm=None)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """`[T]` -> `[80, frames]` in dB: power mel spectrum, window 1024, hop 256, floor 80 dB below a full-scale sine."""
    import librosa

    power = np.abs(librosa.stft(samples, n_fft=1024, hop_length=256)) ** 2 / (1024 / 4) ** 2
    return 10 * np.log10(np.maximum(_mel_filters() @ power, 1e-8))


def mel_distance(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Mean absolute difference of the log-mel spectra, in dB."""
    return float(np.abs(log_mel(reference) - log_mel(degraded)).mean())


def dnsmos(samples: np.ndarray) -> float:
    """DNSMOS P.835, overall quality, 1 to 5: an estimate by a network, without a reference (Reddy et al., 2022).

    Signals shorter than its window of 9 s are repeated to fill it.
    """
    from speechmos import dnsmos as measure

    return float(measure.run(np.clip(samples, -1, 1), RATE)["ovrl_mos"])


def speech_frames(samples: np.ndarray) -> np.ndarray:
    """`bool [T // 480]`: which 30 ms frames webrtcvad calls speech in its strictest mode."""
    import webrtcvad

    detector = webrtcvad.Vad(3)
    pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
    frames = pcm[: len(pcm) // VAD_FRAME * VAD_FRAME].reshape(-1, VAD_FRAME)
    return np.array([detector.is_speech(frame.tobytes(), RATE) for frame in frames], bool)


def speech_fraction(samples: np.ndarray) -> float:
    """Share of 30 ms frames that webrtcvad calls speech; 0 for less than one frame."""
    frames = speech_frames(samples)
    return float(frames.mean()) if len(frames) else 0.0


@functools.cache
def _voice_encoder():
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def voice(samples: np.ndarray) -> np.ndarray:
    """`float32 [256]`, unit length: Resemblyzer's embedding of the voice (GE2E, Wan et al., 2018).

    Zeros, which resemble nobody, where no speech is left once long silences are cut.
    """
    from resemblyzer import preprocess_wav

    if not np.any(samples):
        return np.zeros(256, np.float32)
    kept = preprocess_wav(samples, source_sr=RATE)
    return _voice_encoder().embed_utterance(kept) if len(kept) >= RATE // 4 else np.zeros(256, np.float32)


def codec_figures(reconstruct: Callable[[np.ndarray], np.ndarray], clips: Sequence[Clip]) -> dict[str, Figure]:
    """`pesq`, `stoi`, `dnsmos` and `mel_distance` of what `reconstruct` makes of each clip.

    Where the lengths differ, both are cut to the shorter one.
    """
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in ("pesq", "stoi", "dnsmos", "mel_distance")}
    for speaker, samples in clips:
        got = reconstruct(samples)
        length = min(len(samples), len(got))
        reference, degraded = samples[:length], got[:length]
        values["pesq"].append((speaker, pesq(reference, degraded)))
        values["stoi"].append((speaker, stoi(reference, degraded)))
        values["mel_distance"].append((speaker, mel_distance(reference, degraded)))
        values["dnsmos"].append((speaker, dnsmos(degraded)))
    return {name: figure(pairs) for name, pairs in values.items()}


def opus(kbits: float) -> Callable[[np.ndarray], np.ndarray]:
    """Reconstruction through opusenc and opusdec at `kbits` per second, 20 ms frames.

    Calling the result raises FileNotFoundError where opus-tools is not installed.
    """

    def reconstruct(samples: np.ndarray) -> np.ndarray:
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            source, coded, result = (str(Path(folder, name)) for name in ("in.wav", "x.opus", "out.wav"))
            soundfile.write(source, samples, RATE, subtype="PCM_16")
            subprocess.run(["opusenc", "--quiet", "--bitrate", str(kbits), source, coded], check=True)
            subprocess.run(["opusdec", "--quiet", "--rate", str(RATE), coded, result], check=True)
            return soundfile.read(result, dtype="float32")[0]

    return reconstruct
