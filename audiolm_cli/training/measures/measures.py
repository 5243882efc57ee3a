"""Measures of audio, each a function of samples: `float32 [T]` at 16 kHz in [-1, 1] throughout.

Needs the extra `eval`; packages are imported on use. Figures average over speakers each speaker's average, so that all
count equally; intervals are 95 % by bootstrap over speakers.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from audiolm_cli.audio import postfilter
from audiolm_cli.training import RATE

if TYPE_CHECKING:
    from audiolm_cli.codec.soundstream import SoundStream

VAD_FRAME, VAD_CONTEXT = 512, 64  # samples per input of Silero VAD, and context before them
VOICE_CORNER = 70.0  # Hz: anything below is no voice
DNSMOS_SAMPLES = 144160  # 9.01 s, the window of its network

T = TypeVar("T")


class SpokenClip(NamedTuple):
    """A recording and its speaker: `samples` float32 [T], 16 kHz."""

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
    """The 95 % interval (low, high) of `statistic` when whole groups (speakers) are resampled with replacement."""
    random = np.random.default_rng(seed)
    draws = random.integers(len(groups), size=(resamples, len(groups)))
    values = [statistic([groups[i] for i in draw]) for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def figure(values: Iterable[tuple[str, float]], average: Callable[[list[float]], Any] = np.mean) -> Figure:
    """(speaker, value) pairs -> average over speakers' means; skips NaN; NaN if nothing is left."""
    by_speaker: dict[str, list[float]] = {}
    for speaker, value in values:
        if not np.isnan(value):
            by_speaker.setdefault(speaker, []).append(value)
    if not by_speaker:
        return Figure(np.nan, np.nan, np.nan)
    means = [float(np.mean(group)) for group in by_speaker.values()]
    return Figure(float(average(means)), *bootstrap(means, lambda chosen: float(average(chosen))))


def pesq(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Wideband PESQ (ITU-T P.862.2), 1.0 to 4.64; NaN where it finds no speech."""
    from pesq import PesqError
    from pesq import pesq as measure

    if not (np.any(reference) and np.any(degraded)):
        return float("nan")
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


def network(package: str, file: str) -> Any:
    """An ONNX network from inside an installed package, on one thread: spinning threads slow a busy machine."""
    import onnxruntime

    found = importlib.util.find_spec(package)  # not imported: these packages import more than their networks need
    if found is None or found.origin is None:
        raise ImportError(f"{package} is not installed (extra eval)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(Path(found.origin).parent / file), options)


def spectral_convergence(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Norm of the difference of magnitude spectra (window 1024, hop 256), relative to the reference's norm."""
    import librosa

    a, b = (np.abs(librosa.stft(samples, n_fft=1024, hop_length=256)) for samples in (reference, degraded))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(a) + 1e-9))


@functools.cache
def _quality_network() -> Any:
    return network("speechmos", "dnsmos_models/sig_bak_ovr.onnx")


def dnsmos(samples: np.ndarray) -> float:
    """DNSMOS P.835, overall quality, 1 to 5: a network's estimate without a reference (Reddy et al., 2022).

    Uses the first 9 s, the network's window; shorter signals are repeated to fill it. The polynomial from the network's
    output to the scale is from the authors' script (dnsmos_local.py, and speechmos).
    """
    window = np.resize(samples, DNSMOS_SAMPLES) if len(samples) else np.zeros(DNSMOS_SAMPLES)
    outputs = _quality_network().run(None, {"input_1": np.clip(window, -1, 1).astype(np.float32)[None]})
    return float(np.polyval([-0.06766283, 1.11546468, 0.04602535], outputs[0][0][2]))


@functools.cache
def _speech_detector() -> Any:
    return network("silero_vad", "data/silero_vad.onnx")


def speech_fraction(samples: np.ndarray) -> float:
    """Share of 32 ms frames that Silero VAD calls speech (probability above 0.5); 0 for less than one frame.

    Pauses count: read speech has about 0.75. Unlike webrtcvad, it does not call noise or a buzz speech.
    """
    detector, state, context = _speech_detector(), np.zeros((2, 1, 128), np.float32), np.zeros(VAD_CONTEXT, np.float32)
    frames = samples[: len(samples) // VAD_FRAME * VAD_FRAME].astype(np.float32).reshape(-1, VAD_FRAME)
    speech = 0
    for frame in frames:
        inputs = {"input": np.concatenate([context, frame])[None], "state": state, "sr": np.array(RATE, np.int64)}
        probability, state = detector.run(None, inputs)
        speech += probability[0, 0] > 0.5
        context = frame[-VAD_CONTEXT:]
    return float(speech / len(frames)) if len(frames) else 0.0


@functools.cache
def _voice_encoder() -> Any:
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def voice(samples: np.ndarray) -> np.ndarray:
    """`float32 [256]`, unit length: Resemblyzer's voice embedding (GE2E, Wan et al., 2018), of audio above VOICE_CORNER
    Hz, below which outputs have nothing. Zeros, which match nobody, if no speech is left after cutting long
    silences.
    """
    from resemblyzer import preprocess_wav

    if not np.any(samples):
        return np.zeros(256, np.float32)
    kept = preprocess_wav(postfilter.high_passed(samples, RATE, VOICE_CORNER), source_sr=RATE)
    return _voice_encoder().embed_utterance(kept) if len(kept) >= RATE // 4 else np.zeros(256, np.float32)


Measure = Callable[[np.ndarray, np.ndarray], float]  # of a reference and its processed version, equally long
SPEECH_MEASURES: dict[str, Measure] = {
    "pesq": pesq,
    "stoi": stoi,
    "dnsmos": lambda reference, degraded: dnsmos(degraded),
    "mel_distance": mel_distance,
}
MUSIC_MEASURES: dict[str, Measure] = {"mel_distance": mel_distance, "spectral_convergence": spectral_convergence}


def codec_figures(
    reconstruct: Callable[[np.ndarray], np.ndarray],
    clips: Sequence[SpokenClip],
    measures: dict[str, Measure] = SPEECH_MEASURES,
) -> dict[str, Figure]:
    """The measures of each clip's reconstruction by `reconstruct`.

    If the lengths differ, both are cut to the shorter one.
    """
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in measures}
    for speaker, samples in clips:
        got = reconstruct(samples)
        length = min(len(samples), len(got))
        for name, measure in measures.items():
            values[name].append((speaker, measure(samples[:length], got[:length])))
    return {name: figure(pairs) for name, pairs in values.items()}


def opus(kbits: float, constant: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """Reconstruction through opusenc and opusdec at `kbits` per second, 20 ms frames, constant or variable rate.

    Calling the result raises FileNotFoundError if opus-tools is not installed.
    """
    rate = ["--hard-cbr"] if constant else ["--vbr"]

    def reconstruct(samples: np.ndarray) -> np.ndarray:
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            source, coded, result = (str(Path(folder, name)) for name in ("in.wav", "x.opus", "out.wav"))
            soundfile.write(source, samples, RATE, subtype="PCM_16")
            subprocess.run(["opusenc", "--quiet", "--bitrate", str(kbits), *rate, source, coded], check=True)
            subprocess.run(["opusdec", "--quiet", "--rate", str(RATE), coded, result], check=True)
            return soundfile.read(result, dtype="float32")[0]

    return reconstruct


def opus_rows() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Opus at 6 kbit/s, for comparison; empty if opus-tools is not installed."""
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        return {}
    return {"Opus 6 kbit/s, constant rate": opus(6), "Opus 6 kbit/s, variable rate": opus(6, constant=False)}


def autoencoder(codec: SoundStream, quantizers: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reconstruction through the first `quantizers` of a SoundStream, on its device."""
    import torch

    device = next(codec.parameters()).device

    @torch.inference_mode()
    def reconstruct(samples: np.ndarray) -> np.ndarray:
        codes = codec.encode(torch.from_numpy(samples).to(device)[None])
        return codec.decode(codes[:, :quantizers])[0].float().cpu().numpy()

    return reconstruct


def clips_per_speaker(clips: Iterable[SpokenClip], most: int) -> list[SpokenClip]:
    """The first `most` clips of each speaker."""
    seen: dict[str, int] = {}
    kept = []
    for clip in clips:
        seen[clip.speaker] = seen.get(clip.speaker, 0) + 1
        if seen[clip.speaker] <= most:
            kept.append(clip)
    return kept
