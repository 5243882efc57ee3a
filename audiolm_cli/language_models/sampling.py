"""Sampling a token from logits and one uniform number, and the counter-based noise that provides the numbers.

A token's uniform number is a hash of (seed, position in the job list, sample, stage, frame, quantizer), so it depends
neither on the batch nor on the order of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.config import COLDEST, StageSampling

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Noise:
    """The source of an item's random numbers."""

    seed: int
    position: int  # in the job list
    sample: int
    candidate: int = 0  # its number, where stage 1 samples several

    def numbers(self, stage: int, first_frame: int, frames: int, first_quantizer: int, quantizers: int) -> Tensor:
        """`float32 [frames * quantizers]`, in flattened order; frames count from the start of the output."""
        frame = np.repeat(np.arange(first_frame, first_frame + frames), quantizers)
        quantizer = np.tile(np.arange(first_quantizer, first_quantizer + quantizers), frames)
        return torch.from_numpy(uniforms(self.seed, self.position, self.sample, stage, frame, quantizer))


def uniforms(
    seed: int, position: int, sample: int, stage: int, frames: np.ndarray, quantizers: np.ndarray
) -> np.ndarray:
    """One number in (0, 1) per (frame, quantizer) pair: `float32 [N]` from two `int [N]`."""
    state = np.zeros(len(frames), np.uint64)
    for key in (seed, position, sample, stage, frames, quantizers):
        state = _mix(state ^ _mix(np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
    return ((state >> np.uint64(41)).astype(np.float32) + 0.5) * np.float32(2.0**-23)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def draw(logits: Tensor, uniform: Tensor, s: StageSampling, heat: Tensor | None = None) -> Tensor:
    """Logits `[B, V]`, uniform numbers `[B]`, factors of the temperature `[B]` -> tokens `int64 [B]`.

    With classifier-free guidance the rows are the items, then the items as each guide sees them; guides get the same
    tokens as their items.
    """
    if not s.guidance:
        return sample(logits, uniform, s.temperature, s.top_k, s.top_p, heat)
    branches = 1 + len(s.guide_weights)
    own, *less = logits.float().chunk(branches)
    without = torch.stack([share * part for share, part in zip(s.guide_weights, less, strict=True)]).sum(0)
    guided = torch.lerp(without, own, 1 + s.guidance)
    hot = None if heat is None else heat.chunk(branches)[0]
    return sample(guided, uniform.chunk(branches)[0], s.temperature, s.top_k, s.top_p, hot).repeat(branches)


def sample(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float, heat: Tensor | None = None
) -> Tensor:
    """Logits `[B, V]`, uniform numbers `[B]`, factors of the temperature `[B]` -> tokens `int64 [B]`.

    Temperature 0 takes the most likely token. top_k keeps the k most likely, 0 all; of these top_p keeps the most
    likely ones up to and including the one that reaches that probability. Ties with the last one kept are kept as well.
    """
    if temperature < COLDEST:
        return logits.argmax(-1)
    tempered = logits.float() / temperature
    share = (tempered if heat is None else tempered / heat[:, None]).softmax(-1)
    if top_k or top_p < 1:
        ascending = _sorted(share)
        if top_k:
            ascending[:, :-top_k] = 0
        total = ascending.cumsum(-1)
        # of what is kept by top_k, the least likely that add up to less than 1 - top_p go; the likeliest stays
        first = torch.searchsorted(total, total[:, -1:] * (1 - top_p), right=True).clamp(max=share.shape[-1] - 1)
        share = share * (share >= ascending.gather(-1, first))
    total = share.cumsum(-1)
    return torch.searchsorted(total, uniform[:, None] * total[:, -1:])[:, 0]  # where it reaches the number


def _sorted(values: Tensor) -> Tensor:
    """Sorts ascending; on a CPU with numpy, whose vectorized sort takes a twentieth of torch's time."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values
