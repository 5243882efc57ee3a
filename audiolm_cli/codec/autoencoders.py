"""The two encoder-decoder kinds of SoundStream: `waveform` as published, `spectral` on STFT frames.

Everything is causal and streams: each layer keeps the past it needs in a `State`, so a long recording in pieces gives
the same values as in one piece. An encoder turns audio `float32 [B, T]` (T a multiple of the hop) into latents
`[B, F, D]`, one frame per hop; frame f sees samples before hop * (f + 1). A decoder turns latents into audio that lags
by `delay` samples; `flush` returns the last `delay` samples.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.audio.mel import hann
from audiolm_cli.config import SpectralConfig, WaveformConfig

State = dict[nn.Module, Any]  # what each layer keeps of the past; empty at the start of a recording
NOISE_FRAMES = 499  # after which the noise repeats, 10 s


class CausalConv(nn.Module):
    """A 1-d convolution over `[B, C, T]` that sees only the past; T must be a multiple of the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups)
        self.past = (kernel - 1) * dilation - (stride - 1)

    def forward(self, x: Tensor, state: State) -> Tensor:
        past = state[self] if self in state else x.new_zeros(x.shape[0], x.shape[1], self.past)
        x = torch.cat([past.to(x.dtype), x], -1)
        state[self] = x[..., x.shape[-1] - self.past :]
        return self.conv(x)


class CausalTransposedConv(nn.Module):
    """Upsamples `[B, C, T]` by the stride with a kernel of two strides; the overhang is kept for the next piece."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.conv(x)
        if self in state:
            y = torch.cat([y[..., : self.stride] + state[self], y[..., self.stride :]], -1)
        state[self] = y[..., -self.stride :]
        return y[..., : -self.stride] + self.bias[:, None]


# ---------------------------------------------------------------------------------------------------- spectral


class ConvNeXtBlock(nn.Module):
    """A 1-d ConvNeXt block over `[B, F, D]`: a depthwise causal convolution, then two linear layers."""

    def __init__(self, width: int, expansion: int = 3, kernel: int = 7):
        super().__init__()
        self.depthwise = CausalConv(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, state: State) -> Tensor:
        y = self.depthwise(x.transpose(1, 2), state).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


class SpectralEncoder(nn.Module):
    """STFT (log magnitude and unit phase) -> ConvNeXt blocks -> latents. A frame's window of two hops ends with it."""

    def __init__(self, config: SpectralConfig, hop: int):
        super().__init__()
        self.hop = hop
        self.input = nn.Linear(3 * (hop + 1), config.width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.width) for _ in range(config.encoder_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.latent)

    def forward(self, audio: Tensor, state: State) -> Tensor:
        past = state[self] if self in state else audio.new_zeros(audio.shape[0], self.hop)
        audio = torch.cat([past, audio], -1)
        state[self] = audio[:, -self.hop :]
        spectrum = torch.fft.rfft(audio.unfold(-1, 2 * self.hop, self.hop) * hann(2 * self.hop, audio.device))
        size = torch.view_as_real(spectrum).square().sum(-1).add(1e-10).sqrt()
        x = torch.cat([0.5 * (size + 1e-3).log() + 1, spectrum.real / (size + 1e-3), spectrum.imag / (size + 1e-3)], -1)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, state)
        return self.output(self.norm(x))


@functools.cache
@torch.inference_mode(False)  # cached: a tensor made in inference mode could not be used in training
def noise_spectra(size: int, hop: int, device: torch.device) -> Tensor:
    """STFT frames of white noise that repeats after NOISE_FRAMES hops, of unit variance in each bin: `complex64
    [NOISE_FRAMES, size // 2 + 1]`. The samples come from a hash of their index (splitmix64), so that they are the same
    with every version of every library."""
    mixed = np.arange(1, NOISE_FRAMES * hop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    uniform = (mixed ^ (mixed >> np.uint64(31))).astype(np.float64) / 2.0**63 - 1
    noise = torch.from_numpy((uniform * math.sqrt(3)).astype(np.float32)).to(device)
    window = hann(size, device)
    frames = torch.cat([noise, noise[: size - hop]]).unfold(-1, size, hop) * window
    return torch.fft.rfft(frames / window.square().sum().sqrt())


class SpectralDecoder(nn.Module):
    """Latents -> ConvNeXt blocks -> magnitude and phase -> overlapping frames of four hops, each centred on its hop.

    Sample t is complete once frame t // hop + 2 has been added: the look-ahead is 2 frames, the delay 1.5 hops. With
    `noise`, the network also predicts the magnitude of noise in each bin, which is added. The noise belongs to the
    frame's number: the same codes give the same audio.
    """

    lookahead = 2  # frames

    def __init__(self, config: SpectralConfig, hop: int):
        super().__init__()
        self.hop, self.size = hop, 4 * hop
        self.delay = (self.size - hop) // 2  # samples
        self.input = nn.Linear(config.latent, config.width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config.width) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.size + 2)
        self.noise = nn.Linear(config.width, self.size // 2 + 1) if config.noise else None

    def forward(self, latents: Tensor, state: State) -> Tensor:
        x = self.input(latents)
        for block in self.blocks:
            x = block(x, state)
        x = self.norm(x)
        magnitude, phase = self.output(x).float().chunk(2, -1)
        magnitude = magnitude.clamp(max=6).exp()
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        if self.noise is not None:
            first, count = state.get(self.noise, 0), x.shape[1]
            noise = noise_spectra(self.size, self.hop, x.device)
            chosen = (first + torch.arange(count, device=x.device)) % len(noise)
            spectrum = spectrum + self.noise(x).float().clamp(max=6).exp() * noise[chosen]
            state[self.noise] = first + count
        window = hann(self.size, x.device)
        frames = torch.fft.irfft(spectrum, n=self.size) * window
        power = window.square().expand(1, x.shape[1], self.size)
        return self._overlap_add(frames, power, state)

    def _overlap_add(self, frames: Tensor, power: Tensor, state: State) -> Tensor:
        """Overlap-adds frames `[B, F, size]` at each hop and divides by the window power summed there. Frames that
        reach into the next piece are kept unsummed, so the order of summation does not depend on the pieces."""
        overlap = self.size // self.hop - 1
        kept = state[self] if self in state else [v.new_zeros(len(v), overlap, self.size) for v in (frames, power)]
        values = [torch.cat([before, v], 1) for before, v in zip(kept, (frames, power), strict=True)]
        state[self] = [v[:, -overlap:] for v in values]
        sums = []
        for value in values:
            count = value.shape[1]
            parts = value.view(len(value), count, overlap + 1, self.hop)
            total = value.new_zeros(len(value), count + overlap, self.hop)
            for i in range(overlap + 1):
                total[:, i : i + count] += parts[:, :, i]
            sums.append(total[:, overlap:count].flatten(1))
        return sums[0] / sums[1].clamp(min=1e-2)

    def flush(self, state: State) -> Tensor:
        frames, power = (torch.zeros_like(kept) for kept in state[self])
        return self._overlap_add(frames, power, state)[:, : self.delay]


# ---------------------------------------------------------------------------------------------------- waveform


class ResidualUnit(nn.Module):
    """SoundStream, figure 3: a dilated convolution of width 7 and a pointwise one, added to the input; `[B, C, T]`."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.first = CausalConv(channels, channels, 7, dilation=dilation)
        self.second = CausalConv(channels, channels, 1)

    def forward(self, x: Tensor, state: State) -> Tensor:
        return x + self.second(F.elu(self.first(F.elu(x), state)), state)


class WaveformEncoder(nn.Module):
    """SoundStream's encoder (Zeghidour et al., 2021, section III-A): strided convolutions that double the channels."""

    def __init__(self, config: WaveformConfig):
        super().__init__()
        channels = config.encoder_channels
        layers: list[nn.Module] = [CausalConv(1, channels, 7)]
        for stride in config.strides:
            layers += [ResidualUnit(channels, dilation) for dilation in (1, 3, 9)]
            layers.append(CausalConv(channels, 2 * channels, 2 * stride, stride))
            channels *= 2
        self.layers = nn.ModuleList(layers)
        self.output = CausalConv(channels, config.latent, 3)
        _preserve_variance(self)

    def forward(self, audio: Tensor, state: State) -> Tensor:
        x = audio[:, None]
        for layer in self.layers:
            x = layer(x if isinstance(layer, ResidualUnit) or x.shape[1] == 1 else F.elu(x), state)
        return self.output(F.elu(x), state).transpose(1, 2)


class WaveformDecoder(nn.Module):
    """SoundStream's decoder, mirroring the encoder; no look-ahead, no delay."""

    lookahead, delay, noise = 0, 0, None

    def __init__(self, config: WaveformConfig):
        super().__init__()
        channels = config.decoder_channels * 2 ** len(config.strides)
        self.input = CausalConv(config.latent, channels, 7)
        layers: list[nn.Module] = []
        for stride in reversed(config.strides):
            layers.append(CausalTransposedConv(channels, channels // 2, stride))
            channels //= 2
            layers += [ResidualUnit(channels, dilation) for dilation in (1, 3, 9)]
        self.layers = nn.ModuleList(layers)
        self.output = CausalConv(channels, 1, 7)
        _preserve_variance(self)

    def forward(self, latents: Tensor, state: State) -> Tensor:
        x = self.input(latents.transpose(1, 2), state)
        for layer in self.layers:
            x = layer(x if isinstance(layer, ResidualUnit) else F.elu(x), state)
        return self.output(F.elu(x), state)[:, 0].float()

    def flush(self, state: State) -> Tensor:
        return next(iter(state.values())).new_zeros(0)


def _preserve_variance(module: nn.Module) -> None:
    """Initialises for constant variance, as torch's default shrinks the signal layer by layer, with small residuals."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            taps = layer.kernel_size[0] // layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1
            fan_in = layer.in_channels * (taps if isinstance(layer, nn.ConvTranspose1d) else layer.kernel_size[0])
            gain = 0.3 if name.endswith("second.conv") or name.startswith("output") else 1.2
            nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
