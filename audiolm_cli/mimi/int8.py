"""A code decoder's weights for the native kernel: matrices in int8 with a scale per output."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from audiolm_cli import native
from audiolm_cli.errors import UsageError
from audiolm_cli.mimi.decoder import CodeDecoder, DecoderBlock, RMSNorm
from audiolm_cli.mimi.weights import load_decoder
from audiolm_cli.native.model import NO_HEAD_NORMS, OUTPUTS, UNROLLED, Packer, Weights
from audiolm_cli.public.config import DecoderConfig
from audiolm_cli.public.layout import Layout


def load_int8(folder: Path, config: DecoderConfig, layout: Layout, library: ctypes.CDLL) -> CodeDecoder:
    """The `CodeDecoder` of a checkpoint, decoded by the native kernel; raises as `load_decoder` and `quantize` do."""
    model = load_decoder(folder, config, layout, torch.device("cpu"), torch.bfloat16)
    quantize(model, library)
    return model


def quantize(model: CodeDecoder, library: ctypes.CDLL) -> None:
    """Lets the native kernel decode a model on a CPU in place of torch. Each layer is dropped when it is converted, so
    that no weights are in memory twice.

    Raises UsageError for sizes that the kernel does not have, ModelError for weights that are not finite.
    """
    config, packer = model.config, Packer("the language model")
    if config.width % OUTPUTS or config.intermediate_size % OUTPUTS or config.head_width % UNROLLED:
        raise UsageError(
            f"--dtype int8: needs widths in multiples of {OUTPUTS} and heads in multiples of {UNROLLED}, not "
            f"{config.width}, {config.intermediate_size} and {config.head_width}"
        )

    def norm(module: nn.Module) -> native.Norm:
        rms = cast("RMSNorm", module)
        return native.Norm(packer.keep(packer.table(rms.weight)), None, rms.epsilon)

    blocks = []
    for number in range(config.layers):
        block = cast("DecoderBlock", model.blocks[number])
        heads = [norm(module) for module in block.qk_norms] or NO_HEAD_NORMS
        matrices = (packer.matrix(m.weight) for m in (block.qkv, block.output, block.gate_up, block.down))
        blocks.append(native.Block(norm(block.attention_norm), norm(block.feedforward_norm), *heads, *matrices))
        model.blocks[number] = nn.Identity()
    ids = packer.table(model.ids.weight)
    head = F.pad(model.unembedding, (0, 0, 0, len(ids) - len(model.unembedding)))  # the header is never sampled
    ready = native.Model(
        config.width,
        config.heads,
        config.kv_heads,
        config.head_width,
        config.intermediate_size,
        config.layers,
        1,
        1,
        len(ids),
        packer.keep(model.frequencies(torch.device("cpu")).double().numpy()),
        packer.keep(ids),
        packer.matrix(head),
        packer.array(native.Block, blocks),
        norm(model.norm),
    )
    model.ids.weight, model.head = nn.Parameter(torch.from_numpy(ids), requires_grad=False), None
    model.native = Weights(ready, library, None, kept=packer.kept)
