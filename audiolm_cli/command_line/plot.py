"""A picture of an output: its spectrogram, the end of the prompt, and the token streams below."""

from __future__ import annotations

import importlib.util
import io
import logging
from typing import TYPE_CHECKING

import numpy as np

from audiolm_cli.errors import UsageError

if TYPE_CHECKING:
    from audiolm_cli.config import TokenSpec
    from audiolm_cli.pipeline import Output

WINDOW, HOP = 512, 128  # samples
RANGE = 80  # dB from the maximum down to the darkest colour


def check() -> None:
    """Raises UsageError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: needs matplotlib: pip install 'audiolm[plot]'")


def png(output: Output, spec: TokenSpec, title: str) -> bytes:
    """The picture as a PNG file."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # before it searches for a font cache folder
    from matplotlib.figure import Figure

    rate, seconds = spec.sample_rate, len(output.waveform) / spec.sample_rate
    figure = Figure(figsize=(min(30, 4 + seconds), 7), layout="constrained")
    start, codes = output.tokens_start / rate, np.asarray(output.codes)
    heights = (6, 1, 1, 2)[: 4 if len(codes) > spec.coarse else 3]  # a bundle may have no stage 3
    sound, *panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    extent = (0, seconds, 0, rate / 2000)
    sound.imshow(_spectrogram(output.waveform), origin="lower", aspect="auto", extent=extent, cmap="magma")
    sound.set(ylabel="kHz")
    sound.set_title(title, parse_math=False)  # a name may contain dollar signs
    streams = (  # tokens [rows, columns], vocabulary size, samples per column
        (np.asarray(output.semantic)[None], spec.semantic_vocabulary, spec.samples_per_semantic, "semantic"),
        (codes[: spec.coarse], spec.codebook_size, spec.samples_per_frame, "coarse"),
        (codes[spec.coarse :], spec.codebook_size, spec.samples_per_frame, "fine"),
    )
    look = {"aspect": "auto", "cmap": "twilight", "vmin": 0, "interpolation": "nearest"}
    for axes, (tokens, size, per, name) in zip(panels, streams, strict=False):
        axes.set(ylabel=name, yticks=[])
        if tokens.size:
            place = (start, start + tokens.shape[1] * per / rate, len(tokens), 0)
            axes.imshow(tokens, extent=place, vmax=size, **look)
    for axes in (sound, *panels):
        axes.set_xlim(0, seconds)
        if output.prompt_samples:
            axes.axvline(output.prompt_samples / rate, color="cyan", linewidth=1)
    panels[-1].set(xlabel="seconds")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Level relative to the maximum in dB, `[WINDOW // 2 + 1, frames]`."""
    padded = np.pad(waveform, (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames))).T
    level = 10 * np.log10(power + 1e-10)
    return np.maximum(level - level.max(), -RANGE)
