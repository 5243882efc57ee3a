"""A stage's weights for the native kernel: matrices in int8 with a scale per output, norms and embeddings in float32.

Values are rounded to the nearest multiple of the scale, which is an output's largest weight in magnitude / 127.
"""

from __future__ import annotations

import ctypes
import decimal
from ctypes import POINTER, c_double, c_float, c_int8, c_int32
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from audiolm_cli import native
from audiolm_cli.errors import ModelError
from audiolm_cli.language_models.transformer import Stack

OUTPUTS, INPUTS, UNROLLED = 16, 4, 8  # as in products.h
NO_HEAD_NORMS = native.Norm(), native.Norm()
KINDS: dict[Any, Any] = {
    np.dtype(np.float32): c_float,
    np.dtype(np.int32): c_int32,
    np.dtype(np.int8): c_int8,
    np.dtype(float): c_double,
}


def pointer(array: np.ndarray) -> Any:
    """A pointer to the first element; the caller must keep the array alive."""
    assert array.flags.c_contiguous
    return ctypes.cast(array.ctypes.data, POINTER(KINDS[array.dtype]))


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `float32 [outputs, inputs]` -> `int8 [outputs, inputs]` and scales `float32 [outputs]`."""
    scales = np.abs(weight).max(1) / np.float32(127)
    divisors = np.maximum(scales, np.finfo(np.float32).tiny)[:, None]
    return np.rint(weight / divisors).astype(np.int8), scales


def packed(values: np.ndarray) -> np.ndarray:
    """`int8 [outputs, inputs]` -> `[outputs / 16, inputs / 4, 16, 4]`, padded with zeros."""
    outputs, inputs = values.shape
    padded = np.pad(values, ((0, -outputs % OUTPUTS), (0, -inputs % UNROLLED)))
    blocks = padded.reshape(-1, OUTPUTS, padded.shape[1] // INPUTS, INPUTS)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3))


@dataclass
class Weights:
    """A stage's weights; `model` points into the arrays of `kept`. `features` and `context` are those of the kind's
    `NativeParts`."""

    model: native.Model
    library: ctypes.CDLL
    features: np.ndarray | None  # `float32 [values, size]`
    context: native.Matrix | None = None
    kept: list[Any] = field(default_factory=list)


def fits(model: nn.Module) -> bool:
    """Whether the native kernel supports a model's kind and sizes."""
    if not isinstance(model, Stack) or model.native_parts() is None:
        return False
    config = model.config
    whole = config.width % OUTPUTS == 0 and config.feedforward % OUTPUTS == 0 and config.width // config.heads % 8 == 0
    return whole and max(2 * config.width, config.feedforward) <= 1 << 16


class Packer:
    """Converts modules to the kernel's structures, and keeps the arrays that these point to."""

    def __init__(self, name: str):
        self.name = name  # of the model, for errors
        self.kept: list[Any] = []

    def keep(self, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        self.kept.append(array)
        return pointer(array)

    def table(self, weight: Tensor) -> np.ndarray:
        array = weight.detach().float().numpy()
        if not np.isfinite(array).all():
            raise ModelError(f"{self.name}: the model has weights that are not finite")
        return array

    def matrix(self, weight: Tensor) -> native.Matrix:
        values, scales = quantized(self.table(weight))
        padding = -len(values) % OUTPUTS
        sums = np.pad(values.sum(1, dtype=np.int32), (0, padding))
        ready = packed(values)
        outputs, inputs = ready.shape[0] * OUTPUTS, ready.shape[1] * INPUTS
        pointers = self.keep(ready), self.keep(np.pad(scales, (0, padding))), self.keep(sums)
        return native.Matrix(outputs, inputs, *pointers)

    def norm(self, norm: nn.LayerNorm) -> native.Norm:
        return native.Norm(self.keep(self.table(norm.weight)), self.keep(self.table(norm.bias)), norm.eps)

    def array(self, kind: Any, made: list[Any]) -> Any:
        array = (kind * len(made))(*made)
        self.kept.append(array)
        return array


def give(model: nn.Module) -> None:
    """Lets the native kernel decode a model if it supports its kind and sizes. The weights must be on a CPU and not
    packed. Raises ModelError if they are not finite."""
    name = native.kernel()
    library = native.library(name) if name else None
    if library is not None and fits(model):
        stack = cast("Stack", model)
        stack.native = prepare(stack, library)


def prepare(model: Stack, library: ctypes.CDLL) -> Weights:
    """The weights of a model that `fits`, on a CPU and not packed. Raises ModelError if they are not finite."""
    packer, config, parts = Packer(model.stage), model.config, model.native_parts()
    assert parts is not None
    blocks = []
    for block in model.layers():
        norms = packer.norm(block.attention_norm), packer.norm(block.feedforward_norm)
        blocks.append(
            native.Block(
                *norms,
                *NO_HEAD_NORMS,
                *(packer.matrix(getattr(block, m).weight) for m in ("qkv", "output", "up", "down")),
            )
        )
    levels = []
    for level in parts.levels:
        norms = packer.norm(level.codes_norm), packer.norm(level.norm)
        levels.append(native.Level(*norms, packer.matrix(level.up.weight), packer.matrix(level.down.weight)))
    rows = len(model.ids.weight) // parts.quantizers
    codes = rows * parts.quantizers  # without the row for an unknown code
    ready = native.Model(
        config.width,
        config.heads,
        config.kv_heads,
        config.head_width,
        config.feedforward,
        config.layers,
        0,
        parts.quantizers,
        rows,
        packer.keep(turns(config.head_width // 2, config.rotary_base)),
        packer.keep(packer.table(model.ids.weight)),
        packer.matrix(model.ids.weight[:codes]),
        packer.array(native.Block, blocks),
        packer.norm(model.norm),
        packer.array(native.Level, levels) if levels else None,
        packer.keep(packer.table(parts.asked.weight)) if parts.asked is not None else None,
    )
    features = packer.table(parts.features.weight) if parts.features is not None else None
    context = packer.matrix(parts.context.weight) if parts.context is not None else None
    return Weights(ready, library, features, context, packer.kept)


def turns(half: int, base: float) -> np.ndarray:
    """Radians per position of each rotated pair, `float64 [half]`; by decimal, for the same bits everywhere."""
    with decimal.localcontext(decimal.Context(prec=25)):
        powers = (decimal.Decimal(base) ** (-decimal.Decimal(n) / half) for n in range(half))
        return np.array([float(power) for power in powers])
