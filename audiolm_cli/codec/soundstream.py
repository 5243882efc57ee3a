"""SoundStream (Zeghidour et al., 2021, arXiv 2107.03312): audio <-> codes of a residual vector quantizer.

Audio is `float32 [B, T]` in [-1, 1]; codes are `int64 [B, Q, F]`, one frame per hop (320 samples, 50 frames/s at
16 kHz). Frame f sees samples before hop * (f + 1); output sample t depends on codes up to t // hop + `lookahead`. The
first q quantizers can be decoded alone, for every q.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from audiolm_cli.codebook import nearest
from audiolm_cli.codec.autoencoders import SpectralDecoder, SpectralEncoder, State, WaveformDecoder, WaveformEncoder
from audiolm_cli.config import SpectralConfig, TokenSpec, WaveformConfig
from audiolm_cli.console import Tell

PIECE_FRAMES = 200  # encoded at a time (4 s), for bounded memory
DECODED_FRAMES = 50  # decoded at a time (1 s)


class ResidualQuantizer(nn.Module):
    """Each codebook quantizes the residual of those before it."""

    def __init__(self, quantizers: int, codebook_size: int, latent: int):
        super().__init__()
        codebooks = nn.init.normal_(torch.empty(quantizers, codebook_size, latent))
        self.codebooks = nn.Parameter(codebooks, requires_grad=False)

    def encode(self, latents: Tensor) -> Tensor:
        """Latents `float32 [B, F, D]` -> codes `int64 [B, Q, F]`."""
        residual, codes = latents.flatten(0, 1), []
        for codebook in self.codebooks:
            code = nearest(residual, codebook)
            residual = residual - codebook[code]
            codes.append(code.view(latents.shape[:2]))
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `int64 [B, q, F]` of the first q quantizers -> latents `float32 [B, F, D]`."""
        parts = [codebook[code] for codebook, code in zip(self.codebooks, codes.unbind(1), strict=False)]
        return functools.reduce(torch.add, parts)


class SoundStream(nn.Module):
    """Encoder, residual quantizer and decoder of one bundle."""

    def __init__(self, config: SpectralConfig | WaveformConfig, tokens: TokenSpec):
        super().__init__()
        self.hop = tokens.samples_per_frame
        self.encoder: SpectralEncoder | WaveformEncoder
        self.decoder: SpectralDecoder | WaveformDecoder
        if isinstance(config, SpectralConfig):
            self.encoder, self.decoder = SpectralEncoder(config, self.hop), SpectralDecoder(config, self.hop)
        else:
            self.encoder, self.decoder = WaveformEncoder(config), WaveformDecoder(config)
        self.quantizer = ResidualQuantizer(tokens.quantizers, tokens.codebook_size, config.latent)

    @property
    def lookahead(self) -> int:
        """Output sample t depends on frames up to t // hop plus this."""
        return self.decoder.lookahead

    @torch.inference_mode()
    def encode(self, audio: Tensor, tell: Tell | None = None) -> Tensor:
        """Audio `float32 [B, T]`, T a multiple of the hop -> codes `int64 [B, Q, T // hop]`, in bounded memory. `tell`
        gets the number of frames done.

        Every piece has the same shape (the last is padded; the encoder is causal), so the beginning of a recording
        gives the same codes whatever follows.
        """
        frames, piece, state = audio.shape[-1] // self.hop, PIECE_FRAMES * self.hop, State()
        codes = []
        for start in range(0, frames * self.hop, piece):
            part = audio[:, start : start + piece]
            part = nn.functional.pad(part, (0, piece - part.shape[-1]))
            codes.append(self.quantizer.encode(self.encoder(part, state)))
            if tell:
                tell(min(PIECE_FRAMES, frames - start // self.hop))
        return torch.cat(codes, -1)[..., :frames]

    def decode(self, codes: Tensor, tell: Tell | None = None) -> Tensor:
        """Codes `int64 [B, q, F]` of the first q quantizers -> audio `float32 [B, F * hop]`."""
        decoding = Decoding(self)
        return torch.cat([*decoding.push(codes, tell), decoding.finish()], -1)

    def reconstruct(self, latents: Tensor, first: int = 0) -> Tensor:
        """Latents `[B, F, D]` -> audio `[B, F * hop]` in one piece, for training. A decoder with noise takes that of
        the frame `first` and those that follow."""
        state = State() if self.decoder.noise is None else State({self.decoder.noise: first})
        audio = self.decoder(latents, state)
        return (
            torch.cat([audio, self.decoder.flush(state)], -1)[:, self.decoder.delay :] if self.decoder.delay else audio
        )


class Decoding:
    """Streaming decoder, `int64 [B, q, F]` to `float32 [B, T]`. It lags by the decoder's delay. The last bits depend on
    how the codes were split."""

    def __init__(self, codec: SoundStream):
        self.codec, self.state, self.skip, self.items = codec, State(), codec.decoder.delay, 1

    @torch.inference_mode()
    def push(self, codes: Tensor, tell: Tell | None = None) -> Iterator[Tensor]:
        """Decodes codes; yields audio in pieces of at most a second."""
        self.items = len(codes)
        for part in codes.split(DECODED_FRAMES, -1):
            if part.shape[-1]:
                audio = self.codec.decoder(self.codec.quantizer.decode(part), self.state)
                audio, self.skip = audio[:, self.skip :], max(0, self.skip - audio.shape[-1])
                if tell:
                    tell(part.shape[-1])
                yield audio

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The remaining audio."""
        if not self.codec.decoder.delay:
            return self.codec.quantizer.codebooks.new_zeros(self.items, 0)
        return self.codec.decoder.flush(self.state)[:, self.skip :]

    def copy(self) -> Decoding:
        """An independent decoder in the same state."""
        found = Decoding(self.codec)
        found.state, found.skip, found.items = State(self.state), self.skip, self.items
        return found
