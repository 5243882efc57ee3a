"""One language model over Mimi's codes as a backend: its settings come from its files, its parts are read on first
use."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.bundles.bundle import pick_device, pick_dtype
from audiolm_cli.config import OutputConfig, Sampling, TokenSpec
from audiolm_cli.console import Tell
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.mimi import codec
from audiolm_cli.mimi.codec import Mimi
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.mimi.int8 import load_int8
from audiolm_cli.mimi.weights import check_weights, load_decoder
from audiolm_cli.public.codec import MimiConfig, read_codec_config
from audiolm_cli.public.config import DecoderConfig, read_config
from audiolm_cli.public.files import digest, needed
from audiolm_cli.public.layout import CODEBOOK_SIZE, Layout, read_layout

if TYPE_CHECKING:
    from audiolm_cli.request import Request

QUIET_SECONDS, QUIET_LEVELS = 2.0, (-75.0, -60.0)  # of each noise; dB of full scale
PROMPT_SECONDS = 10.0  # from the end of a prompt, if within the limit


@dataclass(frozen=True)
class MimiSettings:
    """Limits and defaults. `window`: the model's context in frames."""

    name: str
    tokens: TokenSpec
    sampling: Sampling
    window: int
    depends: dict[str, dict[str, str]]

    output: ClassVar[OutputConfig] = OutputConfig(high_pass=0.0, level_range=0.0)  # neither high-pass nor level control
    lookahead: ClassVar[int] = 0  # Mimi is causal
    resampled_tokens: ClassVar[int] = 0
    familiar_bits: ClassVar[float] = 0.0
    familiar_semantic_bits: ClassVar[float] = 0.0
    knows_pauses: ClassVar[bool] = True
    pause_limit: ClassVar[float] = math.inf

    @property
    def sampled_quantizers(self) -> int:
        return self.tokens.quantizers

    @property
    def longest_prompt(self) -> float:
        """Seconds of a prompt that leave half a window for the continuation."""
        return self.window // 2 / self.tokens.semantic_rate

    @property
    def prompt_seconds(self) -> float:
        return min(PROMPT_SECONDS, self.longest_prompt)

    def allow(self, request: Request) -> None:
        """Raises UsageError for options that need three stages, and for a prompt longer than the model's limit."""
        if getattr(request, "best_of", 1) > 1:
            raise UsageError(f"best-of: {self.name} is one language model; only stage 1 of three makes candidates")
        if getattr(request, "until_end", False):
            raise UsageError(f"until-end: {self.name} makes as much as is asked for")
        for name in ("guidance", "prompt_guidance"):
            if getattr(request, name, None):
                raise UsageError(f"{name.replace('_', '-')}: {self.name} has none")
        for name in ("temperature", "top_k", "top_p"):
            if len(set(getattr(request, name) or (0,))) > 1:
                raise UsageError(f"{name.replace('_', '-')}: {self.name} is one language model: give one number")
        if (getattr(request, "prompt_seconds", None) or 0) > self.longest_prompt:
            raise UsageError(f"prompt-seconds: {self.name} hears at most {self.longest_prompt:g} seconds of a prompt")


class MimiBackend:
    """A loaded model."""

    compiled = False

    def __init__(
        self, folder: Path, tokenizer: Path, codec_folder: Path, *, name: str, device: str = "auto", dtype: str = "auto"
    ):
        """folder: config.json and the weights; tokenizer: the folder of tokenizer.json. Raises ModelError for files
        that do not fit, before reading any weights, and UsageError."""
        codec.transformers()
        self.folder, self.tokenizer, self.codec_folder = folder, tokenizer, codec_folder
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.library = native.required("--dtype int8") if dtype == "int8" else None
        self.kernel = "native" if self.library else "torch"
        self.revision = folder.name if folder.parent.name == "snapshots" else ""
        self.decoder_config, self.layout, self.codec_config = _read(folder, tokenizer, codec_folder)
        check_weights(folder, self.decoder_config)
        self.config = self._settings(name)

    def _settings(self, name: str) -> MimiSettings:
        family, mimi, quantizers = self.layout.family, self.codec_config, self.layout.quantizers
        spec = TokenSpec(
            sample_rate=mimi.sampling_rate,
            samples_per_frame=mimi.samples_per_frame,
            frames_per_semantic=1,  # the first quantizer's codes are the semantic tokens
            quantizers=quantizers,
            coarse=quantizers,
            codebook_size=CODEBOOK_SIZE,
            semantic_vocabulary=CODEBOOK_SIZE,
        )
        sampling = Sampling((family.temperature,) * 3, (family.top_k,) * 3, (family.top_p,) * 3)
        context = min(family.context, self.decoder_config.max_position_embeddings)
        window = (context - len(self.layout.header)) // quantizers
        if window < 8:
            raise ModelError(f"{self.folder}: config.json: max_position_embeddings leave no room for sound")
        source = {"self": _identity(self.codec_folder)}
        return MimiSettings(name, spec, sampling, window, {"codec": source, "tokenizer": source})

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of the names and digests of all files: the model's, its vocabulary and Mimi's."""
        parts = [_identity(self.folder), digest(self.tokenizer / "tokenizer.json")]
        return hashlib.sha256("\n".join([*parts, self.config.depends["codec"]["self"]]).encode()).hexdigest()

    @cached_property
    def model(self) -> CodeDecoder:
        if self.library:
            return load_int8(self.folder, self.decoder_config, self.layout, self.library)
        decoder = load_decoder(self.folder, self.decoder_config, self.layout, self.device, self.dtype)
        decoder.pack()
        return decoder

    @cached_property
    def codec(self) -> Mimi:
        return Mimi(self.codec_folder, self.codec_config, self.layout.quantizers, self.device)

    def read(self) -> None:
        """Reads all files, which happens on first use otherwise."""
        _ = self.identity, self.model, self.codec

    @cached_property
    def quiet_codes(self) -> frozenset[int]:
        """The first quantizer's codes of silence and of quiet noise, white and red."""
        spec = self.config.tokens
        white = np.random.default_rng(0).standard_normal(round(QUIET_SECONDS * spec.sample_rate))
        red = np.cumsum(white - white.mean())
        noises = [noise / noise.std() * 10 ** (level / 20) for noise in (white, red) for level in QUIET_LEVELS]
        sounds = [np.zeros_like(white), *noises]
        return frozenset(code for sound in sounds for code in self.tokenize(sound.astype(np.float32))[0].tolist())

    def tokenize(self, samples: np.ndarray, tell: Tell | None = None) -> tuple[Tensor, Tensor]:
        """Audio `float32 [T]` -> the first quantizer's codes `int64 [F]`, all codes `int64 [Q, F]`; the last frame is
        padded with silence."""
        padded = np.pad(samples, (0, -len(samples) % self.config.tokens.samples_per_frame))
        codes = self.codec.encode(torch.from_numpy(padded), tell)
        return codes[0], codes


def check(folder: Path, tokenizer: Path, codec_folder: Path) -> None:
    """Raises ModelError if the files of a model do not fit each other."""
    config, _, _ = _read(folder, tokenizer, codec_folder)
    check_weights(folder, config)


def _read(folder: Path, tokenizer: Path, codec_folder: Path) -> tuple[DecoderConfig, Layout, MimiConfig]:
    config, mimi = read_config(folder), read_codec_config(codec_folder)
    layout = read_layout(tokenizer, config)
    if layout.quantizers > mimi.num_quantizers:
        raise ModelError(f"{codec_folder}: has {mimi.num_quantizers} quantizers, the model {layout.quantizers}")
    return config, layout, mimi


def _identity(folder: Path) -> str:
    lines = [f"{digest(folder / name)}  {name}\n" for name in needed(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
