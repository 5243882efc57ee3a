"""The interface of a model, of any kind, that the pipeline and the command line use.

There are two kinds: bundles of three stages (`bundles.bundle.Bundle`), and one language model over Mimi's codes
(`mimi.model.MimiBackend`). `models.load` determines a model's kind from its config.json. Each kind continues tokens
in its own `rendering.Run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from audiolm_cli.config import OutputConfig, Sampling, TokenSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from audiolm_cli.console import Tell
    from audiolm_cli.request import Request


class Settings(Protocol):
    """Limits and defaults."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> TokenSpec: ...

    @property
    def sampled_quantizers(self) -> int:
        """How many quantizers' codes outputs have."""

    @property
    def sampling(self) -> Sampling: ...

    @property
    def output(self) -> OutputConfig: ...

    @property
    def prompt_seconds(self) -> float:
        """The default length of the prompt, counted from its end."""

    @property
    def lookahead(self) -> int:
        """How many of a prompt's last tokens would differ if the recording went on."""

    @property
    def resampled_tokens(self) -> int:
        """At most this many of them are sampled again."""

    @property
    def familiar_bits(self) -> float: ...

    @property
    def familiar_semantic_bits(self) -> float: ...

    @property
    def knows_pauses(self) -> bool:
        """Whether some semantic tokens are known to stand for silence."""

    @property
    def pause_limit(self) -> float:
        """The default of --max-pause, in seconds; infinite: no limit."""

    @property
    def depends(self) -> dict[str, dict[str, str]]:
        """The codec and tokenizer that tokens come from: keys `codec` and `tokenizer`, their `self`."""

    def allow(self, request: Request) -> None:
        """Raises UsageError for a request that this kind cannot serve."""


class Backend(Protocol):
    """A loaded model."""

    kernel: str  # decodes the language models
    compiled: bool  # whether the native kernel could decode them

    @property
    def revision(self) -> str:
        """The repository's revision, if the identity does not imply it."""

    @property
    def config(self) -> Settings: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def identity(self) -> str:
        """Identifies these exact weights."""

    def read(self) -> None:
        """Reads all files, which happens on first use otherwise. Raises ModelError for a damaged one."""

    def tokenize(self, samples: np.ndarray, tell: Tell | None = None) -> tuple[Tensor, Tensor]:
        """Audio `float32 [T]` -> semantic tokens `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic."""
