"""Discriminators that tell recordings from the codec's reconstructions, and the losses of both sides.

One small convolutional network per STFT window reads real and imaginary parts (SoundStream, section III-D; EnCodec,
Defossez et al., 2022). The losses are hinge losses, plus feature matching for the codec. Audio is `float32 [B, T]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class STFTDiscriminator(nn.Module):
    """Convolutions over one spectrogram that halve the frequencies; dilation widens the receptive field in time."""

    shape: Tensor

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        self.register_buffer("shape", torch.hann_window(window), persistent=False)
        layers = [nn.Conv2d(2, channels, (3, 9), (1, 2), (1, 4))]
        for dilation in (1, 2, 4):
            layers.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), (dilation, 4), (dilation, 1)))
        layers.append(nn.Conv2d(channels, 1, 3, padding=1))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """`[B, T]` -> each layer's output, `[B, C, frames, frequencies]`; the last one holds the real-or-not logits."""
        x = torch.stft(
            audio.float(), self.window, self.window // 4, window=self.shape, normalized=True, return_complex=True
        )
        x = torch.view_as_real(x).permute(0, 3, 2, 1)
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.layers[-1](x)]


class Discriminators(nn.Module):
    """One discriminator per STFT window (in samples)."""

    def __init__(self, windows: tuple[int, ...] = (1024,), channels: int = 16):
        super().__init__()
        self.nets = nn.ModuleList(STFTDiscriminator(window, channels) for window in windows)

    def discriminator_loss(self, real: Tensor, made: Tensor) -> Tensor:
        """The hinge loss of the discriminators."""
        losses = []
        for net in self.nets:
            yes, no = net(real)[-1].float(), net(made.detach())[-1].float()
            losses.append(F.relu(1 - yes).mean() + F.relu(1 + no).mean())
        return torch.stack(losses).mean()

    def generator_loss(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """The codec's adversarial loss, and its feature-matching loss, relative to the real features."""
        adversarial, matching = [], []
        for net in self.nets:
            with torch.no_grad():
                wanted = net(real)[:-1]
            *features, verdict = net(made)
            adversarial.append(F.relu(1 - verdict.float()).mean())
            for a, b in zip(wanted, features, strict=True):
                matching.append((a - b).abs().float().mean() / a.abs().float().mean())
        return torch.stack(adversarial).mean(), torch.stack(matching).mean()
