"""What a layer computes for one row depends on no other row, and on no more of the cache than it may see."""

from __future__ import annotations

import math

import pytest
import torch

from audiolm_cli import processor
from audiolm_cli.config import StageConfig, preset
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.frames import Level
from audiolm_cli.language_models.layers import Block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "width"), [(2, 16), (1, 64), (4, 64)])
def test_attention_does_not_see_how_far_the_cache_reaches(dtype: torch.dtype, kv_heads: int, width: int) -> None:
    block = Block(StageConfig(width=4 * width, heads=4, kv_heads=kv_heads), 0.0)
    generator, longest, step = torch.Generator().manual_seed(0), 2048, engine.CACHE_STEP[dtype]
    for length in torch.randint(1, longest, (30,), generator=generator).tolist():
        q = torch.randn(2, 4, 1, width, generator=generator).to(dtype)
        keys, values = torch.randn(2, 2, kv_heads, longest, width, generator=generator).to(dtype)
        bias = torch.zeros(2, 1, 1, longest, dtype=dtype)
        bias[0, ..., length:] = -math.inf
        results = [
            block.attend_cached(q, keys[:, :, :end], values[:, :, :end], bias[..., :end])[0]
            for end in range(-(-length // step) * step, longest + 1, step)
        ]
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.skipif(not processor.packs_bfloat16(), reason="this processor's bfloat16 weights are not packed")
@pytest.mark.parametrize("name", ["speech", "paper"])
def test_a_rows_product_does_not_depend_on_how_many_rows_there_are(name: str) -> None:
    config = preset(name)
    for stage in (stage for stage in (config.semantic, config.coarse, config.fine) if stage):
        block = Block(stage, 0.0).bfloat16()
        level = Level(stage.width).bfloat16()
        layers = (block.qkv, block.output, block.up, block.down, level.up, level.down)
        shapes = [(linear.in_features, linear.out_features) for linear in layers]
        if processor.row_block(shapes, torch.bfloat16, True, 64) is None:
            assert max(inputs for inputs, _ in shapes) > processor.ROWS_AGREE[-1]  # without AMX
            continue
        for linear in layers:
            linear.pack()
            for rows in (2, 3, 5, 8, 16, 64):
                x = torch.randn(rows, 1, linear.in_features, dtype=torch.bfloat16)
                other = torch.randn(rows, 1, linear.out_features, dtype=torch.bfloat16)
                with torch.inference_mode():
                    for way in (linear, linear.gelu):
                        together = way(x)
                        assert all(torch.equal(way(x[r : r + 1]), together[r : r + 1]) for r in range(rows))
                    together = linear.plus(x, other)
                    for r in range(rows):
                        assert torch.equal(linear.plus(x[r : r + 1], other[r : r + 1]), together[r : r + 1])
