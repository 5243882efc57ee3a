"""What the pipeline and the command line need of a model, of whatever kind it is: the border between them.

There are two kinds: bundles of three stages (`bundles.bundle.Bundle`), and one language model over Mimi's codes
(`mimi.model.MimiModel`). `backends.load` finds out from its config.json which one a name means. How tokens are
continued, a kind says as its own `rendering.Run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from audiolm_cli.config import OutputConfig, Sampling, TokenSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from audiolm_cli.console import Tell


class Settings(Protocol):
    """Limits and defaults."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> TokenSpec: ...

    @property
    def sampling(self) -> Sampling: ...

    @property
    def output(self) -> OutputConfig: ...

    @property
    def prompt_seconds(self) -> float:
        """Of a prompt's end, where no other length is asked for."""

    @property
    def lookahead(self) -> int:
        """A prompt's last tokens that would be others if the recording went on."""

    @property
    def resampled_tokens(self) -> int:
        """How many of these are made again, at most."""

    @property
    def familiar_bits(self) -> float: ...

    @property
    def familiar_semantic_bits(self) -> float: ...

    @property
    def depends(self) -> dict[str, dict[str, str]]:
        """What the codes and the semantic tokens came from: `codec` and `tokenizer`, their `self`."""

    def allow(self, request: Any) -> None:
        """Raises UsageError for what is asked for and cannot be had of this kind."""


class Backend(Protocol):
    """A loaded model."""

    kernel: str  # what decodes
    compiled: bool  # whether the native kernel could

    @property
    def revision(self) -> str:
        """Of the repository that it is from, where its identity does not say enough."""

    @property
    def config(self) -> Settings: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def identity(self) -> str:
        """Names these very weights."""

    @property
    def codec(self) -> Any: ...

    def tokenize(self, samples: np.ndarray, tell: Tell | None = None) -> tuple[Tensor, Tensor]:
        """Audio `float32 [T]` -> semantic tokens `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic."""
