"""A Conformer layer (Gulati et al., 2020), with torchaudio's structure and names and two changes: attention covers a
band (`left`, `right` tokens) with a learned bias per distance, where the original has neither bounds nor positions;
and the convolution is causal. Sequences are `[B, S, D]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import TokenizerConfig


class BandedAttention(nn.Module):
    """Self-attention within a band, with a learned bias per head and distance."""

    def __init__(self, width: int, heads: int, left: int, right: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.left, self.right, self.dropout = heads, left, right, dropout
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, left + 1 + right))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S, D]` -> `[B, S, D]`."""
        batch, length, width = x.shape
        q, k, v = self.inputs(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        around = F.pad(self.bias, (length - 1 - self.left, length - 1 - self.right), value=-torch.inf)
        bias = around.unfold(-1, length, 1).flip(1)  # row n: position n's biases to all, a slice of the line
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)
        return self.output(x.transpose(1, 2).reshape(batch, length, width))


class CausalDepthwise(nn.Conv1d):
    """A depthwise convolution over `[B, C, S]` that sees only the past."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, groups=channels)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.kernel_size[0] - 1, 0)))


class ConvolutionModule(nn.Module):
    """`[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, width: int, kernel: int, dropout: float):
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.sequential = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            CausalDepthwise(width, kernel),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.sequential(self.layer_norm(x).transpose(1, 2))
        return x.transpose(1, 2)


class FeedForward(nn.Module):
    """`[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.sequential = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.sequential(x)
        return x


class ConformerLayer(nn.Module):
    """Half a feed-forward module, attention, convolution, the other half, norm: `[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, config: TokenizerConfig, dropout: float = 0.0):
        super().__init__()
        width = config.width
        self.ffn1 = FeedForward(width, config.feedforward, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = BandedAttention(width, config.heads, config.left, config.right, dropout)
        self.self_attn_dropout = nn.Dropout(dropout)
        self.conv_module = ConvolutionModule(width, config.kernel, dropout)
        self.ffn2 = FeedForward(width, config.feedforward, dropout)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ffn1(x) * 0.5 + x
        x = self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x))) + x
        x = x + self.conv_module(x)
        x = self.ffn2(x) * 0.5 + x
        x = self.final_layer_norm(x)
        return x
