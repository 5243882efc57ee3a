"""Matrices in int8 with a scale per row, allowed in parts since format version 2.

The tensor `name`, int8 `[rows, ...]`, comes with `name.scale`, float32 `[rows]`, and means values * scales. A row holds
the weights of one output of a linear layer or convolution, or one id's embedding. Values lie in [-127, 127], the
largest magnitude of a row is 127, and a row of zeros has scale 0. Scales have 17 significant bits and magnitudes around
1 (`SMALLEST`, `LARGEST`). So a value times its scale is exact in float32, and quantizing such a matrix again by the
largest magnitudes of its rows / 127, as the native kernel does, gives exactly the stored values and scales.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # suffix to a matrix's name
# by part, prefixes of the names of matrices that training stores in int8; the other parts' are bfloat16
MATRICES: dict[str, tuple[str, ...]] = {
    "codec": ("decoder.",),
    **dict.fromkeys(("tokenizer", "semantic", "coarse", "fine"), ("",)),
}
LEAST_ROW = 32  # shorter rows are not quantized: their scales would take too much space
DROPPED_BITS = 7  # of a scale's 24: as many as 127 has
SMALLEST, LARGEST = 2.0**-100, 2.0**100  # of non-zero scales


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[rows, ...]` -> values int8 of the same shape, scales float32 `[rows]`."""
    rows = weight.detach().float().flatten(1)
    half = 1 << DROPPED_BITS - 1
    bits = ((rows.abs().amax(1) / 127).view(torch.int32) + half) >> DROPPED_BITS << DROPPED_BITS
    scales = bits.view(torch.float32)
    scales = torch.where(scales < SMALLEST, 0.0, scales)
    values = torch.where(scales[:, None] > 0, rows / scales[:, None], 0.0).round()
    return values.to(torch.int8).view(weight.shape), scales


def fault(values: Tensor, scales: Tensor) -> str | None:
    """The fault in a matrix's values int8 `[rows, ...]` and scales `[rows]`, or None."""
    if scales.dtype != torch.float32:
        return f"scales of dtype {scales.dtype}"
    if not ((scales == 0) | ((scales >= SMALLEST) & (scales <= LARGEST))).all():
        return "scales that are no numbers, negative, or too small or large"
    if (scales.view(torch.int32) & (1 << DROPPED_BITS) - 1).any():
        return "scales of more than 17 bits"
    largest = values.abs().view(torch.uint8).flatten(1).amax(1)  # the magnitude of -128 is read as 128
    if not torch.equal(largest, (scales > 0).to(torch.uint8) * 127):
        return "a row whose largest magnitude is not 127"
    return None


def is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor holds the scales of another one."""
    return name.endswith(SCALE) and name.removesuffix(SCALE) in tensors


def is_used(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a part has int8 matrices, which need format version 2."""
    return any(is_scale(name, tensors) for name in tensors)


def stored(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A module's tensors as stored on disk: weights of layers and embeddings with these name prefixes in int8, all
    other floats in bfloat16."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        wide = name.endswith("weight") and tensor.ndim > 1 and tensor[0].numel() >= LEAST_ROW
        if wide and tensor.is_floating_point() and name.startswith(prefixes):
            found[name], found[name + SCALE] = quantized(tensor)
        else:
            found[name] = (tensor.bfloat16() if tensor.is_floating_point() else tensor).contiguous()
    return found


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's tensors from those on disk: int8 matrices become float32, the others stay."""
    found = {}
    for name, tensor in tensors.items():
        if name + SCALE in tensors:
            scales = tensors[name + SCALE].view(-1, *[1] * (tensor.ndim - 1))
            found[name] = tensor.float().mul_(scales)
        elif not is_scale(name, tensors):
            found[name] = tensor
    return found
