"""Trains SoundStream by reconstruction, then its decoder against discriminators as well.

    python -m audiolm_cli.training.parts.codec --data DATA --minutes 60 [--resume] [--kind waveform] [--recipe tiny]
    python -m audiolm_cli.training.parts.codec --data DATA --minutes 60 [--resume] --further [--partials]
    python -m audiolm_cli.training.parts.codec --data DATA --minutes 20 [--resume] --decoder-only
    python -m audiolm_cli.training.parts.codec --data DATA --minutes 40 [--resume] --decoder-only --windows --noise

The first steps run unquantized; then every codebook starts from k-means over collected latents and follows its
points as a moving average (SoundStream, section III-C; VQ-VAE, appendix A). Half of each batch keeps only some of the
quantizers (quantizer dropout), so that every prefix can be decoded. --decoder-only freezes encoder and codebooks, so
that codes stay valid, also for language models trained on them. --further goes on with all of parts/codec.safetensors,
codebooks included: its codes move little, and models trained on them begin close to where they were.

--partials is for music: a note is a few spectral lines, and what the decoder puts between them is heard as noise behind
it. Mel bands are too wide to tell the two apart, so log magnitudes are compared bin by bin as well, over 256 ms.

--noise gives that decoder noise to shape. A reconstruction loss would have it removed: the best guess of a noise's
spectrum has none. So each step decodes twice, with different noise, and between words the loss is the generalised
energy distance (Gritsenko et al., 2020, arXiv 2008.01160), whose minimum has the spread of the recordings: the
distances of both from the recording, less that between them. In words noise would blur what the codes say, so the loss
stays a reconstruction's.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, save_part
from audiolm_cli.codebook import nearest
from audiolm_cli.codec.autoencoders import NOISE_FRAMES
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import SpectralConfig, TokenSpec, WaveformConfig, codec_config
from audiolm_cli.fields import from_json
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus, load_corpus
from audiolm_cli.training.measures.pauses import between_words
from audiolm_cli.training.parts.discriminators import Discriminators
from audiolm_cli.training.parts.kmeans import kmeans
from audiolm_cli.training.parts.spectral_loss import MelLoss, quietness
from audiolm_cli.training.recipes import RECIPES
from audiolm_cli.training.trainer import Trainer, add_matrices, arguments, matrices, warm_start

KINDS: dict[str, type[SpectralConfig | WaveformConfig]] = {"spectral": SpectralConfig, "waveform": WaveformConfig}
UNQUANTIZED_STEPS, COLLECTED_FRAMES = 300, 40_000
VALIDATED_SECONDS, VALIDATED_CLIPS = 3.0, 24  # s of each of so many clips
SCALES = 3  # mel spectrograms in a step
WAVEFORM_WEIGHT, COMMITMENT_WEIGHT = 6.0, 0.25
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.1, 0.5
NOISE_START = -6.0  # log magnitude: far below a quiet room
PARTIALS_WEIGHT = 1.0


class CodebookTrainer(nn.Module):
    """The exponential moving averages that update the codebooks of a `ResidualQuantizer`."""

    mass: Tensor
    total: Tensor

    def __init__(self, codebooks: Tensor, decay: float = 0.99, dead: float = 0.03):
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("mass", torch.ones(codebooks.shape[:2]))
        self.register_buffer("total", codebooks.clone())

    def forward(self, codebooks: Tensor, latents: Tensor, kept: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Latents `[B, F, D]`, the first `kept[b]` quantizers of each item -> quantized latents, commitment loss."""
        points = residual = latents.flatten(0, 1)
        kept = kept.repeat_interleave(latents.shape[1])
        quantized, commitment = torch.zeros_like(points), points.new_zeros(())
        for q, codebook in enumerate(codebooks):
            with torch.no_grad():
                codes = nearest(residual.detach(), codebook)
            chosen = codebook[codes]
            live = (q < kept)[:, None].float()
            commitment = commitment + ((residual - chosen).square() * live).mean()
            if update:
                self._follow(q, codebook, residual.detach(), codes)
            quantized = quantized + chosen * live
            residual = residual - chosen
        quantized = points + (quantized - points).detach()
        return quantized.view_as(latents), commitment / len(codebooks)

    @torch.no_grad()
    def _follow(self, q: int, codebook: Tensor, points: Tensor, codes: Tensor) -> None:
        members = F.one_hot(codes, len(codebook)).to(points.dtype)
        self.mass[q].lerp_(members.sum(0), 1 - self.decay)
        self.total[q].lerp_(members.T @ points, 1 - self.decay)
        unused = self.mass[q] < self.dead
        count = int(unused.sum())
        if count:
            fresh = points[torch.randint(len(points), (count,), device=points.device)]
            self.total[q][unused], self.mass[q][unused] = 0.3 * fresh, 0.3
        codebook.copy_(self.total[q] / self.mass[q].clamp(min=1e-3)[:, None])

    @torch.no_grad()
    def start(self, codebooks: Tensor, latents: Tensor) -> None:
        """k-means, level by level, over latents `[N, D]`."""
        residual = latents
        for q, codebook in enumerate(codebooks):
            codebook.copy_(kmeans(residual, len(codebook), iterations=8))
            codes = nearest(residual, codebook)
            self.mass[q] = 0.8  # about the number of points per code and batch
            self.total[q] = codebook * 0.8
            residual = residual - codebook[codes]


class DiscriminatorTrainer:
    """The discriminators and their optimizer."""

    def __init__(self, windows: list[int], rate: float, device: torch.device, saved: dict[str, Any] | None):
        self.nets = Discriminators(tuple(windows)).to(device)
        self.optimizer = torch.optim.AdamW(self.nets.parameters(), lr=rate, betas=(0.8, 0.99), weight_decay=0.0)
        if saved:
            self.nets.load_state_dict(saved["nets"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def state(self) -> dict[str, Any]:
        return {"nets": self.nets.state_dict(), "optimizer": self.optimizer.state_dict()}

    def learn(self, real: Tensor, made: Tensor) -> Tensor:
        """One discriminator step on audio `[B, T]`; returns the loss."""
        self.nets.requires_grad_(True)
        loss = self.nets.discriminator_loss(real, made)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.nets.requires_grad_(False)  # the codec's step follows
        return loss.detach()


class CodecTraining(nn.Module):
    """The module whose state is in the checkpoints of codec training."""

    def __init__(self, config: SpectralConfig | WaveformConfig, tokens: TokenSpec):
        super().__init__()
        self.codec = SoundStream(config, tokens)
        self.codebooks = CodebookTrainer(self.codec.quantizer.codebooks.data)


def crops(corpus: Corpus, count: int, samples: int, rng: np.random.Generator) -> Tensor:
    """Random crops at random levels, `float32 [count, samples]`."""
    return levelled(corpus, rng.integers(0, len(corpus.audio) - samples, count), samples, rng)


def levelled(corpus: Corpus, starts: np.ndarray, samples: int, rng: np.random.Generator) -> Tensor:
    """The crops that begin at `starts` of a corpus, at random levels, `float32 [len(starts), samples]`."""
    audio = np.stack([corpus.audio[s : s + samples] for s in starts]).astype(np.float32) / 32768
    return torch.from_numpy(audio * rng.uniform(0.3, 1.3, (len(starts), 1)).astype(np.float32)).clamp(-1, 1)


def reconstructions(codec: SoundStream, latents: Tensor, rng: np.random.Generator) -> list[Tensor]:
    """What latents are decoded to, `[B, T]`: once, or with a decoder that shapes noise twice, each with other noise."""
    if codec.decoder.noise is None:
        return [codec.reconstruct(latents)]
    return [codec.reconstruct(latents, int(first)) for first in rng.choice(NOISE_FRAMES, 2, replace=False)]


def reconstruction_loss(audio: Tensor, made: list[Tensor], mel: MelLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of `reconstructions` of audio `[B, T]`, and its parts: mel distance over three scales, waveform and, if
    `mel` has them, partials. With two reconstructions it is, in quiet parts, an energy distance."""
    if len(made) == 1:
        figures = {"mel": mel(audio, made[0], SCALES), "waveform": (audio - made[0]).abs().mean()}
        loss = WAVEFORM_WEIGHT * figures["waveform"] + figures["mel"]
        if mel.has_partials:
            figures["partials"] = mel.partials(audio, made[0])
            loss = loss + PARTIALS_WEIGHT * figures["partials"]
        return loss, figures
    first, second = made
    quiet = quietness(audio)
    apart = (audio - first).abs() + (audio - second).abs() - quiet * (first - second).abs()
    figures = {"energy": mel.energy(audio, first, second, quiet, SCALES), "waveform": 0.5 * apart.mean()}
    return WAVEFORM_WEIGHT * figures["waveform"] + figures["energy"], figures


def kept_quantizers(count: int, quantizers: int) -> Tensor:
    """The number of quantizers that each item keeps: all for half the batch, 1 to all for the rest."""
    kept = torch.randint(1, quantizers + 1, (count,))
    kept[: count // 2] = quantizers
    return kept


@torch.inference_mode()
def validate(codec: SoundStream, corpus: Corpus, loss: MelLoss) -> dict[str, float]:
    """On fixed validation clips: mel distance with all and with the coarse quantizers, and the correlation of noise in
    quiet parts (`measures.pauses`)."""
    audio, codes = validation_codes(codec, corpus, round(VALIDATED_SECONDS * RATE))
    made = codec.decode(codes)
    figures = {"mel_all": round(float(loss(audio, made)), 4), "mel_coarse": distance(codec, audio, codes[:, :4], loss)}
    if loss.has_partials:
        figures["partials"] = round(float(loss.partials(audio, made)), 4)
    figures["pauses"] = round(float(np.nanmean([between_words(clip).of_noise for clip in made.cpu().numpy()])), 3)
    figures["perplexity"] = [round(float(_perplexity(codes[:, q])), 0) for q in (0, 3, codes.shape[1] - 1)]  # type: ignore[assignment]
    return figures


@torch.inference_mode()
def validation_codes(codec: SoundStream, corpus: Corpus, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` samples of the first clips that have them, `[B, length]`, and their codes."""
    clips = [c for c in corpus.clips if c.samples >= length][:VALIDATED_CLIPS]
    audio = torch.from_numpy(np.stack([corpus.samples(c)[:length] for c in clips]))
    audio = audio.to(next(codec.parameters()).device)
    return audio, codec.encode(audio)


@torch.inference_mode()
def distance(codec: SoundStream, audio: Tensor, codes: Tensor, loss: MelLoss) -> float:
    """Mel distance of audio from what its codes are decoded to."""
    return round(float(loss(audio, codec.decode(codes))), 4)


def _perplexity(codes: Tensor) -> Tensor:
    share = torch.bincount(codes.flatten()).float()
    share = share[share > 0] / share.sum()
    return (-(share * share.log()).sum()).exp()


def main() -> None:
    parser = arguments(__doc__ or "", minutes=75)
    parser.add_argument("--recipe", choices=RECIPES, default="speech", help="whose sizes")
    parser.add_argument("--kind", choices=KINDS, help="of encoder and decoder; the recipe's by default")
    parser.add_argument(
        "--decoder-only", action="store_true", help="train the decoder of parts/codec.safetensors, with discriminators"
    )
    parser.add_argument("--further", action="store_true", help="go on with all of parts/codec.safetensors")
    parser.add_argument("--partials", action="store_true", help="compare bin by bin as well, for music")
    parser.add_argument("--windows", type=int, nargs="*", default=[1024], help="STFT windows of the discriminators")
    parser.add_argument("--noise", action="store_true", help="give the decoder noise to shape, with --decoder-only")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a crop")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    add_matrices(parser)
    args = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        parser.error("the codec trains in one process: its codebooks follow the points that one process sees")
    part = args.runs / "parts" / "codec.safetensors"
    sizes = RECIPES[args.recipe].sizes
    tokens, config, before = sizes.tokens, sizes.codec, {}
    if args.kind and args.kind != config.kind:
        config = KINDS[args.kind]()
    if args.further and (args.decoder_only or args.warm_start):
        parser.error("--further trains all of a codec, with its own codebooks: without --decoder-only and --warm-start")
    if args.partials and args.noise:
        parser.error("--partials is not for a decoder with noise to shape, which has a loss of its own")
    goes_on = args.decoder_only or args.further
    if goes_on:
        about = read_about(part)
        tokens, before = from_json(TokenSpec, about["tokens"], "tokens"), about["trained"]
        config = codec_config(about["config"])
    if args.noise:
        if not (args.decoder_only and isinstance(config, SpectralConfig)):
            parser.error("--noise is for --decoder-only, and for decoders of spectra")
        config = dataclasses.replace(config, noise=True)
    train, valid = (load_corpus(args.data, s, tokens.sample_rate, args.runs / "audio") for s in ("train", "valid"))
    training = CodecTraining(config, tokens)
    codec = training.codec
    if goes_on:
        known = {name: tensor.float() for name, tensor in int8.restored(load_file(part)).items()}
        if codec.decoder.noise is not None and "decoder.noise.weight" not in known:
            known["decoder.noise.weight"] = torch.zeros_like(codec.decoder.noise.weight)
            known["decoder.noise.bias"] = torch.full_like(codec.decoder.noise.bias, NOISE_START)
        codec.load_state_dict(known)
        training.codebooks.total.copy_(codec.quantizer.codebooks)
        codec.encoder.requires_grad_(args.further)
    else:
        before = warm_start(args, "codec", codec)
    name = "decoder" if args.decoder_only else "codec_further" if args.further else "codec"
    trainer = Trainer(name, args, training, rate=args.rate, betas=(0.8, 0.99), validate_seconds=400)
    before = trainer.extra.setdefault("before", before)  # of the first run, if this one resumes
    trainer.extra["config"] = dataclasses.asdict(config)
    device, mel = trainer.device, MelLoss(tokens.sample_rate, args.partials).to(trainer.device)
    rng = np.random.default_rng(args.seed + trainer.step)
    samples = int(args.seconds * tokens.sample_rate) // tokens.samples_per_frame * tokens.samples_per_frame
    discriminators = None
    if args.decoder_only and args.windows:
        discriminators = DiscriminatorTrainer(args.windows, args.rate, device, trainer.extra.get("discriminators"))
    collected: list[Tensor] = []
    started = goes_on or trainer.extra.get("quantized", False)
    unquantized = 0 if args.warm_start else UNQUANTIZED_STEPS  # codebooks start over in any case
    for step in trainer:
        audio = crops(train, args.batch, samples, rng).to(device)
        with trainer.autocast(not args.decoder_only):  # a frozen encoder runs as in inference: in float32
            latents = codec.encoder(audio, {}).float()
        commitment = latents.new_zeros(())
        wanting = -(-COLLECTED_FRAMES // latents[..., 0].numel()) - len(collected)  # in batches; after a resume as well
        if not started and (step < unquantized or wanting > 0):
            collected = [*collected[wanting <= 0 :], latents.detach().flatten(0, 1)]
        else:
            if not started:
                training.codebooks.start(codec.quantizer.codebooks, torch.cat(collected))
                collected, started, trainer.extra["quantized"] = [], True, True
            kept = kept_quantizers(args.batch, tokens.quantizers).to(device)
            update = not args.decoder_only
            latents, commitment = training.codebooks(codec.quantizer.codebooks, latents, kept, update=update)
        with trainer.autocast():
            made = reconstructions(codec, latents, rng)
        loss, figures = reconstruction_loss(audio, made, mel)
        loss, figures["commitment"] = loss + COMMITMENT_WEIGHT * commitment, commitment
        if discriminators:
            with trainer.autocast():
                figures["discriminators"] = discriminators.learn(audio, made[0])
                figures["adversarial"], figures["features"] = discriminators.nets.generator_loss(audio, made[0])
            loss = loss + ADVERSARIAL_WEIGHT * figures["adversarial"] + FEATURE_WEIGHT * figures["features"]
            trainer.extra["discriminators"] = discriminators.state()
        trainer.update(loss, figures)
        if trainer.due() and started:
            trainer.log(valid=True, **validate(codec, valid, mel))
    trainer.log(valid=True, finished=True, **validate(codec, valid, mel))
    about = {
        "config": dataclasses.asdict(config),
        "tokens": dataclasses.asdict(tokens),
        "trained": {**before, name: {"steps": trainer.step, "minutes": round(trainer.seconds / 60, 1)}},
    }
    save_part(part, codec, about, matrices(args, "codec"))


if __name__ == "__main__":
    main()
