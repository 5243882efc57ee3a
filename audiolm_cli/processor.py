"""The capabilities of this machine's processor: which bfloat16 products it supports, and the row counts that give batch
invariance, so that a row's result does not depend on the others.

`AUDIOLM_PROCESSOR` (avx2, avx512, avx512_bf16 or amx) makes it act as a lesser one, for tests. A greater one is
refused: it would run instructions that the processor lacks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli.errors import UsageError

Shape = tuple[int, int]  # inputs and outputs of a linear layer

# Packed bfloat16 products give a row the same bits for any number of rows if they have this many inputs; with AMX, also
# if they have more.
ROWS_AGREE = range(128, 1024 + 1)
# Rows of the reference product, and how many row counts are compared with it; a product of more rows is assumed to
# consist of the same blocks.
REFERENCE_ROWS, COUNTS = 64, 16


class Processor(IntEnum):
    """Classes of processors by their bfloat16 support, each including that of the ones before. All others, such as ARM,
    count as the first."""

    AVX2 = 0  # none: torch multiplies in its own loops, which take 1 to 5 times as long as float32
    AVX512 = 1  # oneDNN packs weights and multiplies them in float32
    AVX512_BF16 = 2  # has bfloat16 instructions
    AMX = 3  # multiplies bfloat16 tiles


@functools.cache
def installed() -> Processor:
    """The class of this machine's processor."""
    answers = {
        Processor.AMX: torch.cpu._is_amx_tile_supported,
        Processor.AVX512_BF16: torch.cpu._is_avx512_bf16_supported,
        Processor.AVX512: torch.cpu._is_avx512_supported,
    }
    return next((kind for kind, here in answers.items() if here()), Processor.AVX2)


def processor() -> Processor:
    """The class in effect: the machine's, or the lesser one that AUDIOLM_PROCESSOR names. Raises UsageError."""
    name = os.environ.get("AUDIOLM_PROCESSOR", installed().name)
    if name.upper() not in Processor.__members__:
        raise UsageError(f"AUDIOLM_PROCESSOR: must be avx2, avx512, avx512_bf16 or amx, not {name!r}")
    kind = Processor[name.upper()]
    if kind > installed():
        raise UsageError(f"AUDIOLM_PROCESSOR: {name} is more than this processor has ({installed().name.lower()})")
    return kind


def packs_bfloat16() -> bool:
    """Whether `packed` and `product` work here."""
    able = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return able and processor() >= Processor.AVX512


def prefers_bfloat16() -> bool:
    """Whether language models are faster in bfloat16 than in float32."""
    return packs_bfloat16() and processor() >= Processor.AVX512_BF16


def packed(weight: Tensor) -> Tensor:
    """Rearranges a weight `bfloat16 [outputs, inputs]` for `product`, which otherwise would do so at every call."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)


def product(x: Tensor, weight: Tensor, function: str = "none", variant: str = "") -> Tensor:
    """A function of the product of bfloat16 rows `[..., inputs]` with a weight from `packed`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, function, [], variant)


def product_plus(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """The product of bfloat16 rows with a weight from `packed`, plus `other`."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")


def row_block(shapes: Iterable[Shape], dtype: torch.dtype, packed: bool, most: int) -> int | None:
    """The number to whose multiples rows are padded for batch invariance: the bits of a row's products with layers of
    these shapes then depend neither on the number of rows, up to `most`, nor on its place. None if no such number is
    known."""
    if packed:
        wide_ones = processor() >= Processor.AMX
        agree = all(n in ROWS_AGREE or (wide_ones and n > ROWS_AGREE[-1]) for n, _ in shapes)
        return 1 if agree else None
    blocks = [_row_block(*shape, dtype, most, torch.get_num_threads()) for shape in set(shapes)]
    return max((block for block in blocks if block), default=None) if all(blocks) else None


@functools.cache
@torch.inference_mode()
def _row_block(inputs: int, outputs: int, dtype: torch.dtype, most: int, threads: int) -> int | None:
    """Found by trial. The order of a sum depends on the number of rows, in a way that varies with the library, the
    processor and the number of threads (two split five rows into four and one), so no table could list it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(outputs, inputs, generator=generator).sub_(0.5).to(dtype)
    x = torch.rand(REFERENCE_ROWS + 1, 1, inputs, generator=generator).sub_(0.5).to(dtype)

    def layer(first: int, rows: int) -> Tensor:
        y = F.linear(x[first : first + rows], weight)
        return torch.cat([y, F.gelu(y)], 1)  # its loop may handle the last few numbers differently

    reference = layer(0, REFERENCE_ROWS)
    for block in (1, 2, 4, 8, 16):
        counts = [n for n in range(block, REFERENCE_ROWS + 1, block) if n <= COUNTS * block or n & (n - 1) == 0]
        counts = counts[: 1 + sum(n < most for n in counts)]
        if all(
            torch.equal(layer(0, n), reference[:n])
            and torch.equal(layer(1, n)[: REFERENCE_ROWS - 1], reference[1 : n + 1])  # in other places
            for n in counts
        ):
            return block
    return None
