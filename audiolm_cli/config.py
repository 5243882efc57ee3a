"""What a bundle is made of: plain dataclasses with their units, bounded and checked when they are read.

A bundle's config.json is untrusted: unknown fields, wrong types and sizes beyond the bounds are a `ModelError` that
names the field, raised before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from audiolm_cli.errors import ModelError

FORMAT_VERSION = 1
MAX_PARAMETERS = 2_000_000_000  # of one part; the paper's stages have about 0.3 billion


def bounded(low: float, high: float, **kwargs: Any) -> Any:
    """A dataclass field whose value (or, for tuples, each value) must lie in [low, high]."""
    return field(metadata={"bounds": (low, high)}, **kwargs)


@dataclass(frozen=True)
class TokenSpec:
    """Rates and vocabularies that all parts of a bundle share."""

    sample_rate: int = bounded(8000, 48000, default=16000)  # Hz
    samples_per_frame: int = bounded(40, 4000, default=320)  # codec hop; 50 frames/s at 16 kHz
    frames_per_semantic: int = bounded(1, 8, default=2)  # 25 semantic tokens/s at 50 frames/s
    quantizers: int = bounded(1, 64, default=12)
    coarse: int = bounded(1, 64, default=4)  # quantizers of stage 2; the rest are stage 3's
    codebook_size: int = bounded(2, 65536, default=1024)
    semantic_vocabulary: int = bounded(2, 65536, default=512)

    @property
    def fine(self) -> int:
        """Quantizers of stage 3; 0 in a bundle without a fine stage."""
        return self.quantizers - self.coarse

    @property
    def samples_per_semantic(self) -> int:
        return self.samples_per_frame * self.frames_per_semantic

    @property
    def semantic_rate(self) -> float:
        """Semantic tokens per second."""
        return self.sample_rate / self.samples_per_semantic

    def check(self) -> None:
        if self.coarse > self.quantizers:
            raise ModelError("config.json: tokens.coarse is larger than tokens.quantizers")


@dataclass(frozen=True)
class SpectralConfig:
    """SoundStream between STFT frames: ConvNeXt blocks at the frame rate."""

    kind: Literal["spectral"] = "spectral"
    width: int = bounded(8, 4096, default=384)
    encoder_blocks: int = bounded(1, 64, default=5)
    decoder_blocks: int = bounded(1, 64, default=7)
    latent: int = bounded(1, 1024, default=64)


@dataclass(frozen=True)
class WaveformConfig:
    """SoundStream as published; the product of the strides is the hop."""

    kind: Literal["waveform"] = "waveform"
    encoder_channels: int = bounded(1, 512, default=16)
    decoder_channels: int = bounded(1, 512, default=16)
    strides: tuple[int, ...] = bounded(1, 64, default=(2, 4, 5, 8))
    latent: int = bounded(1, 1024, default=64)


@dataclass(frozen=True)
class TokenizerConfig:
    """The w2v-BERT-style Conformer up to the layer whose outputs are clustered."""

    mel_bins: int = bounded(16, 256, default=80)
    width: int = bounded(8, 2048, default=256)
    heads: int = bounded(1, 64, default=4)
    feedforward: int = bounded(8, 16384, default=1024)
    kernel: int = bounded(1, 255, default=15)  # of the causal depthwise convolution, tokens
    layers: int = bounded(1, 64, default=4)
    left: int = bounded(0, 1000, default=25)  # tokens that attention sees to the left, per layer
    right: int = bounded(0, 100, default=1)  # and to the right

    @property
    def lookahead(self) -> int:
        """A token depends on audio up to this many tokens behind its own end."""
        return self.layers * self.right

    def check(self) -> None:
        if self.width % self.heads:
            raise ModelError("config.json: tokenizer.width must be a multiple of tokenizer.heads")
        if self.kernel % 2 == 0:
            raise ModelError("config.json: tokenizer.kernel must be odd")
