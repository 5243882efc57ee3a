"""The config of a bundle: plain dataclasses with units, bounded and checked on reading (`fields`)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from audiolm_cli.errors import InputError, ModelError
from audiolm_cli.fields import bounded, checked

if TYPE_CHECKING:
    from audiolm_cli.request import Request

FORMAT_VERSION = 2  # the newest; since 2, parts may store matrices in int8
STAGES = ("semantic", "coarse", "fine")
Domain = Literal["speech", "piano"]
Layout = Literal["aligned", "plain", "frames", "parallel"]  # see `StageConfig`
LAYOUTS = {"semantic": ("aligned", "plain"), "coarse": ("frames", "plain"), "fine": ("parallel", "plain")}
MAX_PARAMETERS = 2_000_000_000  # of one part; the paper's stages have about 0.3 billion
COLDEST = 1e-6  # a lower temperature counts as 0: logits divided by it would overflow


@dataclass(frozen=True)
class TokenSpec:
    """Rates and vocabularies that all parts of a bundle share."""

    sample_rate: int = bounded(8000, 48000, default=16000)  # Hz
    samples_per_frame: int = bounded(40, 4000, default=320)  # codec hop; 50 frames/s at 16 kHz
    frames_per_semantic: int = bounded(1, 8, default=2)  # 25 semantic tokens/s at 50 frames/s
    quantizers: int = bounded(1, 64, default=12)
    coarse: int = bounded(1, 64, default=4)  # quantizers of stage 2; stage 3 has the rest
    codebook_size: int = bounded(2, 65536, default=1024)
    semantic_vocabulary: int = bounded(2, 65536, default=512)

    @property
    def fine(self) -> int:
        """Quantizers behind the coarse ones, which a stage 3 samples."""
        return self.quantizers - self.coarse

    @property
    def samples_per_semantic(self) -> int:
        return self.samples_per_frame * self.frames_per_semantic

    @property
    def semantic_rate(self) -> float:
        """Semantic tokens per second."""
        return self.sample_rate / self.samples_per_semantic

    def require_token(self, samples: int, where: str = "") -> None:
        """Raises InputError, beginning with `where`, for fewer samples than a semantic token spans."""
        if samples < self.samples_per_semantic:
            raise InputError(f"{where}shorter than one token, {1000 / self.semantic_rate:g} ms")

    def check(self) -> None:
        if self.coarse > self.quantizers:
            raise ModelError("config.json: tokens.coarse is larger than tokens.quantizers")


@dataclass(frozen=True)
class SpectralConfig:
    """SoundStream on STFT frames: ConvNeXt blocks at the frame rate."""

    kind: Literal["spectral"] = "spectral"
    width: int = bounded(8, 4096, default=384)
    encoder_blocks: int = bounded(1, 64, default=5)
    decoder_blocks: int = bounded(1, 64, default=7)
    latent: int = bounded(1, 1024, default=64)
    noise: bool = False  # the decoder also shapes noise, which codes cannot hold


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
    """A Conformer whose outputs become tokens: the nearest of `centroids`, as in AudioLM, or the likeliest of `classes`
    defined by a teacher."""

    mel_bins: int = bounded(16, 256, default=80)
    mel_window: float = bounded(1, 40, default=2.5)  # window of a spectrum, in mel frames (a quarter of a token each)
    width: int = bounded(8, 2048, default=256)
    heads: int = bounded(1, 64, default=4)
    feedforward: int = bounded(8, 16384, default=1024)
    kernel: int = bounded(1, 255, default=15)  # of the causal depthwise convolution, tokens
    layers: int = bounded(1, 64, default=4)
    left: int = bounded(0, 1000, default=25)  # tokens to the left that attention covers, per layer
    right: int = bounded(0, 100, default=1)  # and to the right
    directions: int = bounded(0, 2048, default=0)  # to project outputs on before comparison with centroids; 0: none
    units: Literal["centroids", "classes"] = "centroids"

    @property
    def lookahead(self) -> int:
        """A token depends on audio up to this many tokens after its own end."""
        return self.layers * self.right

    def check(self) -> None:
        if self.width % self.heads:
            raise ModelError("config.json: tokenizer.width must be a multiple of tokenizer.heads")
        if self.kernel % 2 == 0:
            raise ModelError("config.json: tokenizer.kernel must be odd")
        if self.units == "classes" and self.directions:
            raise ModelError("config.json: tokenizer.directions are those of centroids, not of classes")


@dataclass(frozen=True)
class StageConfig:
    """A Transformer. Layout `aligned`, for the semantic stage: token by token, positions are times. Layout `frames`,
    for the coarse stage: frame by frame. Layout `parallel`, for the fine stage: one pass per quantizer. In all three,
    positions count frames. Layout `plain`: token by token, positions count tokens, as in the paper."""

    layers: int = bounded(1, 96, default=6)
    heads: int = bounded(1, 128, default=4)
    kv_heads: int = bounded(1, 128, default=1)  # each shared by heads / kv_heads query heads: decoding reads less
    width: int = bounded(8, 16384, default=256)
    feedforward: int = bounded(8, 65536, default=1024)
    layout: Layout = "aligned"
    rotary_base: float = bounded(10, 1e7, default=2000.0)
    window_seconds: float = bounded(0.5, 120, default=10.0)  # longer outputs slide by half a window

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def check(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ModelError("config.json: a stage's width must be an even multiple of its heads")
        if self.heads % self.kv_heads:
            raise ModelError("config.json: a stage's heads must be a multiple of its kv_heads")
        if 12 * self.layers * self.width * max(self.width, self.feedforward) > 4 * MAX_PARAMETERS:
            raise ModelError("config.json: a stage is larger than any that this program is made for")


@dataclass(frozen=True)
class DetectorConfig:
    """The classifier that tells a bundle's outputs from recordings. It `hears` the likelihood of each token under the
    bundle's stages (`traces`), or log-mel spectra of the audio resynthesised by its codec (`spectra`); `channels` are
    those of convolutions that halve time (and bins)."""

    hears: Literal["traces", "spectra"] = "traces"
    channels: tuple[int, ...] = bounded(1, 512, default=(32, 32, 32))


@dataclass(frozen=True)
class StageSampling:
    """How a stage samples its tokens. Classifier-free guidance (Ho and Salimans, 2022) with `guidance` w turns logits l
    into l + w (l - g), where g are those of the same model with less conditioning; it strengthens what they lack: the
    voice, the semantic tokens, or the prompt. With several guides, g is the mean, weighted by `guide_weights`."""

    temperature: float
    top_k: int
    top_p: float
    guidance: float = 0.0
    guide_weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Sampling:
    """Sampling settings for the semantic, coarse and fine stage each: a bundle's defaults, or those with a request's
    changes. top_k and guidance 0 mean off; `guidance` is the coarse stage's, `prompt_guidance` the semantic one's."""

    temperature: tuple[float, ...] = bounded(0, 10, default=(0.9, 0.9, 0.7))
    top_k: tuple[int, ...] = bounded(0, 65536, default=(0, 0, 0))
    top_p: tuple[float, ...] = bounded(0, 1, default=(0.95, 0.95, 0.95))
    guidance: float = bounded(0, 10, default=0.0)
    prompt_guidance: float = bounded(0, 10, default=0.0)

    def check(self) -> None:
        if {len(self.temperature), len(self.top_k), len(self.top_p)} != {3}:
            raise ModelError("config.json: sampling needs three values each, for semantic, coarse and fine")

    def stage(self, name: str) -> StageSampling:
        """The settings of one of STAGES."""
        index, guidance = STAGES.index(name), (self.prompt_guidance, self.guidance, 0.0)
        return StageSampling(self.temperature[index], self.top_k[index], self.top_p[index], guidance[index])


@dataclass(frozen=True)
class OutputConfig:
    """Post-processing of a bundle's outputs by `postfilter`: a high-pass filter at `high_pass` (Hz; 0: none), and a
    level within `level_range` of the prompt's (dB; 0: not controlled)."""

    high_pass: float = bounded(0, 200, default=70.0)
    level_range: float = bounded(0, 60, default=1.5)


@dataclass(frozen=True)
class BundleConfig:
    """config.json of a bundle."""

    name: str
    tokens: TokenSpec
    codec: SpectralConfig | WaveformConfig
    tokenizer: TokenizerConfig
    semantic: StageConfig
    coarse: StageConfig
    fine: StageConfig | None  # without it outputs have the coarse codes alone
    detector: DetectorConfig | None = None
    sampling: Sampling = field(default_factory=Sampling)
    output: OutputConfig = field(default_factory=OutputConfig)
    domain: Domain = "speech"  # the training data's, which also selects the evaluation
    prompt_seconds: float = bounded(0.04, 3600, default=3.0)  # from a prompt's end, by default
    resampled_tokens: int = bounded(0, 64, default=64)  # of a prompt's end; at most the lookahead
    guide_weights: tuple[float, ...] = bounded(0, 1, (2, 2), default=(1.0, 0.0))  # of continuations, see `CoarseStage`
    reference_gap: bool = True  # of resyntheses: see `CoarseStage`
    familiar_bits: float = bounded(0, 32, default=0.0)  # `surprise` threshold, rarely exceeded in distribution; 0: none
    familiar_semantic_bits: float = bounded(0, 32, default=0.0)  # lower threshold, in bits per semantic token
    pause_tokens: tuple[int, ...] = bounded(0, 65535, (0, 65536), default=())  # semantic tokens that mean silence
    max_pause: float = bounded(0, 3600, default=0.0)  # seconds from which on a pause is made unlikely; 0: no limit
    depends: dict[str, dict[str, str]] = field(default_factory=dict)  # part -> SHA-256 of the sources of its tokens
    trained: dict[str, Any] = field(default_factory=dict)  # data, hours and steps, for information
    format_version: int = bounded(1, FORMAT_VERSION, default=1)

    @property
    def sampled_quantizers(self) -> int:
        """How many quantizers' codes the stages sample, and outputs have."""
        return self.tokens.quantizers if self.fine else self.tokens.coarse

    @property
    def lookahead(self) -> int:
        """How many of a prompt's last semantic tokens would differ if the recording went on."""
        return self.tokenizer.lookahead

    @property
    def knows_pauses(self) -> bool:
        """Whether some semantic tokens are known to stand for silence."""
        return bool(self.pause_tokens)

    @property
    def pause_limit(self) -> float:
        """`max_pause`, infinite without a limit, as requests have it."""
        return self.max_pause or math.inf

    def allow(self, request: Request) -> None:
        """Accepts every request: three stages can serve all."""

    def check(self) -> None:
        if self.fine and not self.tokens.fine:
            raise ModelError("config.json: a fine stage needs tokens.quantizers to exceed tokens.coarse")
        for stage in (s for s in STAGES if getattr(self, s)):
            if getattr(self, stage).window_seconds * self.tokens.semantic_rate < 2:
                raise ModelError(f"config.json: {stage}.window_seconds must hold two semantic tokens at least")
            if getattr(self, stage).layout not in LAYOUTS[stage]:
                raise ModelError(f"config.json: {stage}.layout must be one of {', '.join(LAYOUTS[stage])}")
        if abs(sum(self.guide_weights) - 1) > 1e-3:
            raise ModelError("config.json: the sum of guide_weights must be 1")
        if any(token >= self.tokens.semantic_vocabulary for token in self.pause_tokens):
            raise ModelError("config.json: pause_tokens must be below tokens.semantic_vocabulary")
        if self.max_pause and not self.pause_tokens:
            raise ModelError("config.json: max_pause needs pause_tokens")
        if isinstance(self.codec, WaveformConfig) and math.prod(self.codec.strides) != self.tokens.samples_per_frame:
            raise ModelError("config.json: the product of codec.strides must be tokens.samples_per_frame")
        if self.tokens.samples_per_semantic % 4:
            raise ModelError("config.json: a semantic token must span a multiple of 4 samples")


def preset(name: str) -> BundleConfig:
    """Sizes to train with: `tiny` for tests, `speech`, `piano`, and `paper` as in AudioLM, section IV-B. Those of the
    shipped bundles are in `weights/*/config.json`.

    Raises KeyError for another name.
    """
    paper = StageConfig(12, 16, 16, 1024, 4096, "plain")
    tiny = StageConfig(2, 4, 2, 32, 64)
    return {
        "tiny": BundleConfig(
            "tiny",
            TokenSpec(codebook_size=32, semantic_vocabulary=16),
            SpectralConfig(width=32, encoder_blocks=1, decoder_blocks=1, latent=8),
            TokenizerConfig(width=32, heads=2, feedforward=32, layers=2),
            tiny,
            dataclasses.replace(tiny, layout="frames"),
            dataclasses.replace(tiny, layout="parallel"),
            DetectorConfig(channels=(4, 8)),
        ),
        "speech": BundleConfig(
            "speech",
            TokenSpec(semantic_vocabulary=1024),
            SpectralConfig(),
            TokenizerConfig(right=2, units="classes"),
            StageConfig(6, 6, 1, 384, 1536),
            StageConfig(6, layout="frames"),
            StageConfig(6, 3, 3, 192, 768, "parallel", window_seconds=6.0),
            DetectorConfig(),
        ),
        "piano": BundleConfig(
            "piano",
            TokenSpec(semantic_vocabulary=1024),
            SpectralConfig(),
            TokenizerConfig(mel_bins=160, mel_window=10.0, units="classes"),  # 100 ms, to resolve neighbouring keys
            StageConfig(),
            StageConfig(6, layout="frames"),
            StageConfig(6, 3, 3, 192, 768, "parallel", window_seconds=6.0),
            DetectorConfig("spectra", (16, 32, 48, 64)),
            output=OutputConfig(high_pass=25.0, level_range=0.0),  # the lowest key has 27.5 Hz
        ),
        "paper": BundleConfig(
            "paper",
            TokenSpec(semantic_vocabulary=1024),
            WaveformConfig(encoder_channels=32, decoder_channels=32),
            TokenizerConfig(),
            paper,
            paper,
            paper,
        ),
    }[name]


def codec_config(value: dict[str, Any]) -> SpectralConfig | WaveformConfig:
    """The config of either kind from parsed JSON; raises ModelError."""
    config: SpectralConfig | WaveformConfig = checked(SpectralConfig | WaveformConfig, value, "codec", {})
    return config
