"""Audio -> semantic tokens, 25 a second, by a Conformer.

AudioLM, section III-B: an intermediate layer of a Conformer trained by masked prediction is normalised per dimension,
and the token is the nearest of K centroids. Or, with `units` "classes", the Conformer was trained to predict K clusters
of a larger network's hidden states, and the token is the likeliest class. A token depends on no audio later than
`lookahead` tokens after its own end. Audio is `float32 [B, T]`, tokens `int64 [B, S]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.audio.mel import log_mel
from audiolm_cli.codebook import nearest
from audiolm_cli.config import TokenizerConfig, TokenSpec
from audiolm_cli.console import Tell
from audiolm_cli.tokenizer.conformer import ConformerLayer

MELS_PER_TOKEN = 4  # mel frames stacked into one token: 100/s at 25 tokens/s
PAST_TOKENS, WINDOW_TOKENS = 75, 100  # a window of 4 s is tokenized with 3 s of past context


class SemanticTokenizer(nn.Module):
    """Log-mel frames -> Conformer layers -> nearest centroid or likeliest class."""

    mel_mean: Tensor
    mel_scale: Tensor
    mean: Tensor
    scale: Tensor
    directions: Tensor
    centroids: Tensor

    def __init__(self, config: TokenizerConfig, tokens: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.config, self.hop = config, tokens.samples_per_semantic
        self.mel_hop = self.hop // MELS_PER_TOKEN
        self.rate, self.mel_window = tokens.sample_rate, round(config.mel_window * self.mel_hop)
        self.register_buffer("mel_mean", torch.zeros(config.mel_bins))
        self.register_buffer("mel_scale", torch.ones(config.mel_bins))
        self.input = nn.Linear(MELS_PER_TOKEN * config.mel_bins, config.width)
        self.layers = nn.ModuleList(ConformerLayer(config, dropout) for _ in range(config.layers))
        if config.units == "classes":
            self.classes = nn.Linear(config.width, tokens.semantic_vocabulary)
            return
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("scale", torch.ones(config.width))
        if config.directions:
            self.register_buffer("directions", torch.zeros(config.directions, config.width))
        self.register_buffer("centroids", torch.zeros(tokens.semantic_vocabulary, config.directions or config.width))

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio `[B, T]` -> `float32 [B, T // mel_hop, bins]`; a frame's window ends where the frame ends."""
        return log_mel(audio, self.mel_window, self.mel_hop, self.config.mel_bins, self.rate, 1e-5)

    def features(self, audio: Tensor) -> Tensor:
        """Audio `[B, T]` -> normalised log-mel frames stacked per token, `[B, S, 4 * bins]`."""
        mel = (self.log_mel(audio) - self.mel_mean) * self.mel_scale
        return mel.view(mel.shape[0], -1, MELS_PER_TOKEN * mel.shape[-1])

    def hidden(self, features: Tensor) -> Tensor:
        """Stacked features `[B, S, 4 * bins]` -> the last layer's output, `[B, S, width]`."""
        x: Tensor = self.input(features)
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.inference_mode()
    def represent(self, audio: Tensor, tell: Tell | None = None) -> Tensor:
        """Audio `[B, T]` -> hidden states `[B, T // hop, width]`, in windows of one fixed length.

        Windows lie on a grid from the start of the recording, padded with silence on either side: tokens of its
        beginning are the same whatever follows (except for the last `lookahead`), in bounded memory. `tell` gets the
        number of tokens done.
        """
        count, ahead = audio.shape[-1] // self.hop, self.config.lookahead
        windows = -(-count // WINDOW_TOKENS)
        after = (windows * WINDOW_TOKENS - count + ahead) * self.hop
        audio = F.pad(audio[:, : count * self.hop], (PAST_TOKENS * self.hop, after))
        size, step = (PAST_TOKENS + WINDOW_TOKENS + ahead) * self.hop, WINDOW_TOKENS * self.hop
        parts = []
        for start in range(0, windows * step, step):
            x = self.hidden(self.features(audio[:, start : start + size]))
            parts.append(x[:, PAST_TOKENS : PAST_TOKENS + WINDOW_TOKENS])
            if tell:
                tell(min(WINDOW_TOKENS, count - start // self.hop))
        return torch.cat(parts, 1)[:, :count]

    def normal(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., width]`, normalised per dimension."""
        return (hidden - self.mean) * self.scale

    def points(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., width]` -> points to compare with the centroids: normalised per dimension and, if there
        are `directions`, projected on them, `[..., directions]`."""
        normal = self.normal(hidden)
        return F.linear(normal, self.directions) if self.config.directions else normal

    def quantize(self, hidden: Tensor) -> Tensor:
        """Hidden states `[B, S, width]` -> the nearest centroids or likeliest classes, `int64 [B, S]`."""
        if self.config.units == "classes":
            classes: Tensor = self.classes(hidden).argmax(-1)
            return classes
        return nearest(self.points(hidden).flatten(0, 1), self.centroids).view(hidden.shape[:2])

    @torch.inference_mode()
    def tokenize(self, audio: Tensor, tell: Tell | None = None) -> Tensor:
        """Audio `float32 [B, T]` -> semantic tokens `int64 [B, T // hop]`; audio after the last whole token is cut."""
        return self.quantize(self.represent(audio, tell))
