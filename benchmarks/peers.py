"""The engine beside audiolm-pytorch and transformers' Bark at equal sizes, all with random weights.

    python -m venv peers && peers/bin/pip install "pip<24" && peers/bin/pip install torch==2.13.0 numpy
    peers/bin/pip install audiolm-pytorch==2.4.0     # brings transformers
    python benchmarks/peers.py --python peers/bin/python --json FILE

Every measurement is a process of its own with the same settings (`--threads`, passive OpenMP waits), all in one order
and then in the reverse one; the least time counts. `audiolm` is timed token by token as in the paper and as shipped (a
frame a step, fine codes in parallel). Of audiolm-pytorch 2.4.0: one key and value head shared by all query heads (ours
has the same here), GEGLU of two thirds of the width, learned relative positions, four residual streams, float32.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = {"small": (256, 6, 4), "paper": (1024, 12, 16)}  # width, layers, heads
SECONDS = {"small": 2.0, "paper": 0.4}  # of audio: 25 semantic, 200 coarse, 400 fine tokens each
BARK = (768, 12, 12)
BARK_PREFIX, BARK_TOKENS, BARK_FRAMES = 256, 256, 512


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ours(kind: str, size: str, dtype: str) -> dict[str, float]:
    """Seconds of each stage for a whole piece of audio from nothing."""
    import torch

    from audiolm_cli.config import StageConfig, TokenSpec
    from audiolm_cli.language_models.kinds import stage_model
    from audiolm_cli.language_models.sampling import Noise, StageSampling
    from audiolm_cli.language_models.stages import StageContext, complete, continue_coarse, continue_semantic
    from audiolm_cli.native.model import give

    width, layers, heads = SIZES[size]
    layouts = ("plain", "plain", "plain") if kind == "token by token" else ("aligned", "frames", "parallel")
    spec, sampling, noise = TokenSpec(), StageSampling(1.0, 100, 1.0), [Noise(0, 0, 0)]
    models: list[Any] = []
    for stage, layout in zip(("semantic", "coarse", "fine"), layouts, strict=True):
        config = StageConfig(layers, heads, 1, width, 4 * width, layout)  # type: ignore[arg-type]
        model = stage_model(config, spec, stage).to(getattr(torch, dtype)).eval().requires_grad_(False)  # type: ignore[arg-type]
        give(model)  # where AUDIOLM_KERNEL says so: int8, whatever the dtype of the other stages
        model.pack()
        models.append(model)
    semantic, coarse, fine = models

    def run(seconds: float) -> dict[str, float]:
        tokens, made = round(seconds * spec.semantic_rate), {}
        words = torch.zeros(tokens, dtype=torch.int64)
        codes = torch.zeros(spec.coarse, tokens * spec.frames_per_semantic, dtype=torch.int64)
        made["semantic"] = timed(
            lambda: continue_semantic(semantic, [words[:0]], [tokens], StageContext(noise, sampling, 1))
        )
        made["coarse"] = timed(
            lambda: continue_coarse(coarse, [words], [codes[:, :0]], StageContext(noise, sampling, 1))
        )
        nothing = torch.zeros(spec.quantizers, 0, dtype=torch.int64)
        made["fine"] = timed(lambda: complete(fine, [codes], [nothing], StageContext(noise, sampling, 1)))
        return made

    run(0.08)  # warms up
    return run(SECONDS[size])


def audiolm_pytorch(size: str) -> dict[str, float]:
    from unittest.mock import MagicMock

    sys.modules["fairseq"] = MagicMock()  # 0.12.2 does not import on Python 3.11; only its HuBERT is not used here
    import torch
    from audiolm_pytorch import audiolm_pytorch as peer

    peer.get_encoded_dim = lambda name: 768  # of T5: else looked up on a hub, for a layer that is never used
    width, depth, heads = SIZES[size]
    common: dict[str, Any] = {"dim": width, "depth": depth, "heads": heads, "dim_head": width // heads}
    codec = peer.SoundStream(channels=4, rq_num_quantizers=12, codebook_size=1024)  # wanted by the wrappers, idle
    semantic = peer.SemanticTransformer(num_semantic_tokens=512, **common)
    semantic.to_logits.bias.data[-1] = -1e4  # no end
    stages = {
        "semantic": peer.SemanticTransformerWrapper(transformer=semantic, unique_consecutive=False),
        "coarse": peer.CoarseTransformerWrapper(
            transformer=peer.CoarseTransformer(
                codebook_size=1024, num_coarse_quantizers=4, num_semantic_tokens=512, **common
            ),
            codec=codec,
            unique_consecutive=False,
        ),
        "fine": peer.FineTransformerWrapper(
            transformer=peer.FineTransformer(
                num_coarse_quantizers=4, num_fine_quantizers=8, codebook_size=1024, **common
            ),
            codec=codec,
        ),
    }

    def run(seconds: float) -> dict[str, float]:
        tokens = round(25 * seconds)
        words, codes = torch.randint(512, (1, tokens)), torch.randint(1024, (1, 2 * tokens, 4))
        calls = {
            "semantic": lambda: stages["semantic"].generate(max_length=tokens, batch_size=1),
            "coarse": lambda: stages["coarse"].generate(semantic_token_ids=words, max_time_steps=2 * tokens),
            "fine": lambda: stages["fine"].generate(coarse_token_ids=codes),
        }
        return {stage: timed(call) for stage, call in calls.items()}

    run(0.08)
    return run(SECONDS[size])


def rates(
    semantic: Callable[[int], float], coarse: Callable[[int], float], fine: Callable[[], float]
) -> dict[str, float]:
    """Tokens a second, from functions that give the seconds of a number of tokens, or of all fine ones."""
    semantic(8), coarse(8), fine()  # warms up
    return {
        "semantic": BARK_TOKENS / semantic(BARK_TOKENS),
        "coarse": BARK_TOKENS / coarse(BARK_TOKENS),
        "fine": 6 * BARK_FRAMES / fine(),
    }


def bark(dtype: str) -> dict[str, float]:
    import torch
    from transformers import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig, GenerationMixin
    from transformers.models.bark import modeling_bark as peer

    width, layers, heads = BARK
    common: dict[str, Any] = {"hidden_size": width, "num_layers": layers, "num_heads": heads}
    kind = getattr(torch, dtype)
    semantic = peer.BarkSemanticModel(BarkSemanticConfig(**common)).to(kind).eval()
    coarse = peer.BarkCoarseModel(BarkCoarseConfig(input_vocab_size=12096, output_vocab_size=12096, **common))
    coarse = coarse.to(kind).eval()
    fine = peer.BarkFineModel(BarkFineConfig(input_vocab_size=1056, output_vocab_size=1056, **common)).to(kind).eval()
    options = {"do_sample": True, "top_k": 50, "eos_token_id": None, "pad_token_id": 0}

    def decoded(model: Any, count: int) -> float:
        ids = torch.randint(1000, (1, BARK_PREFIX))
        mask = torch.ones_like(ids)
        return timed(
            lambda: GenerationMixin.generate(
                model, ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **options
            )
        )

    @torch.inference_mode()
    def filled() -> None:
        codes = torch.randint(1024, (1, BARK_FRAMES, 8))
        for n in range(2, 8):  # as BarkFineModel.generate does for each window
            logits = fine(n, codes).logits[..., :1024].float()
            codes[..., n] = torch.multinomial(logits.softmax(-1)[0], 1)[:, 0]

    return rates(functools.partial(decoded, semantic), functools.partial(decoded, coarse), lambda: timed(filled))


def ours_as_bark(dtype: str) -> dict[str, float]:
    """Tokens a second: the same widths, vocabularies and lengths."""
    import numpy as np
    import torch

    from audiolm_cli.config import StageConfig, TokenSpec
    from audiolm_cli.language_models import engine
    from audiolm_cli.language_models.kinds import stage_model
    from audiolm_cli.language_models.sampling import Noise, StageSampling, uniforms
    from audiolm_cli.language_models.stages import StageContext, complete
    from audiolm_cli.native.model import give

    width, layers, heads = BARK
    spec = TokenSpec(quantizers=8, coarse=2, semantic_vocabulary=10048)
    plain = StageConfig(layers, heads, heads, width, 4 * width, "plain")
    filling = StageConfig(layers, heads, heads, width, 4 * width, "parallel", window_seconds=BARK_FRAMES / 50)
    kind = getattr(torch, dtype)
    models: list[Any] = [
        stage_model(config, spec, stage).to(kind).eval().requires_grad_(False)  # type: ignore[arg-type]
        for config, stage in ((plain, "semantic"), (plain, "coarse"), (filling, "fine"))
    ]
    semantic, coarse, fine = models
    for model in models:
        give(model)
        model.pack()

    def decoded(model: Any, count: int) -> float:
        noise = torch.from_numpy(uniforms(0, 0, 0, 1, np.arange(count), np.zeros(count, int)))
        if model is semantic:
            ids = torch.randint(10048, (BARK_PREFIX + count,))
            ids[BARK_PREFIX:] = -1
            item = model.item(model.sequence(ids), noise)
        else:
            codes = torch.randint(1024, (2, BARK_PREFIX // 2))
            unknown = torch.cat([codes[:, : BARK_PREFIX // 4], codes.new_full((2, count // 2), -1)], 1)
            words = torch.randint(10048, (unknown.shape[1] // 2,))
            item = model.item(model.sequence(words, unknown), noise)
        return timed(lambda: engine.generate(model, [item], StageSampling(1.0, 50, 1.0), 1))

    codes, nothing = torch.randint(1024, (2, BARK_FRAMES)), torch.zeros(8, 0, dtype=torch.int64)

    def filled() -> None:
        complete(fine, [codes], [nothing], StageContext([Noise(0, 0, 0)], StageSampling(1.0, 0, 1.0), 1))

    return rates(functools.partial(decoded, semantic), functools.partial(decoded, coarse), lambda: timed(filled))


MEASUREMENTS: dict[str, tuple[bool, Callable[[], dict[str, float]]]] = {  # name: whether it needs the peers' Python
    "small, audiolm-pytorch float32": (True, lambda: audiolm_pytorch("small")),
    "small, audiolm float32 token by token": (False, lambda: ours("token by token", "small", "float32")),
    "small, audiolm bfloat16 token by token": (False, lambda: ours("token by token", "small", "bfloat16")),
    "small, audiolm bfloat16 as shipped": (False, lambda: ours("as shipped", "small", "bfloat16")),
    "paper, audiolm-pytorch float32": (True, lambda: audiolm_pytorch("paper")),
    "paper, audiolm float32 token by token": (False, lambda: ours("token by token", "paper", "float32")),
    "paper, audiolm bfloat16 token by token": (False, lambda: ours("token by token", "paper", "bfloat16")),
    "paper, audiolm bfloat16 as shipped": (False, lambda: ours("as shipped", "paper", "bfloat16")),
    "bark float32": (True, lambda: bark("float32")),
    "bark bfloat16": (True, lambda: bark("bfloat16")),
    "bark sizes, audiolm float32": (False, lambda: ours_as_bark("float32")),
    "bark sizes, audiolm bfloat16": (False, lambda: ours_as_bark("bfloat16")),
}


def child(name: str, threads: int) -> None:
    """One measurement in this process, written as the last line of stdout."""
    import torch

    if MEASUREMENTS[name][0]:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        import tests.helpers.reference_torchaudio  # noqa: F401  (torchaudio, whose extension does not load)

    torch.set_num_threads(threads)
    print("\n" + json.dumps(MEASUREMENTS[name][1]()))


def measured(python: str, threads: int, names: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    for name in [*names, *reversed(names)]:
        interpreter = python if MEASUREMENTS[name][0] else sys.executable
        command = [interpreter, __file__, "--child", name, "--threads", str(threads)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            sys.exit(f"peers: {name}: {result.stderr[-2000:]}")
        found = json.loads(result.stdout.splitlines()[-1])
        print(
            f"{threads} threads, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True
        )
        yield name, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="peers/bin/python", help="of the peers' environment")
    parser.add_argument("--threads", default="1,2", help="numbers of CPU threads to try; each program's best counts")
    parser.add_argument("--only", default="", help="measurements whose name begins so")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, int(args.threads))
    from audiolm_cli.checks import threads

    try:
        counts = [threads(1)(text) for text in args.threads.split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --threads: {error}")
    names = [name for name in MEASUREMENTS if name.startswith(args.only)]
    best: dict[str, dict[str, float]] = {}
    for count in counts:
        for name, found in measured(args.python, count, names):
            choose = max if name.startswith("bark") else min
            known = best.setdefault(name, found)
            best[name] = {key: choose(value, known[key]) for key, value in found.items()}
    for name, row in best.items():
        unit, whole = ("tokens/s", "") if name.startswith("bark") else ("s", f", whole {sum(row.values()):.2f} s")
        print(f"{name}: " + ", ".join(f"{key} {value:.3f} {unit}" for key, value in row.items()) + whole)
    if args.json:
        args.json.write_text(json.dumps(best, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
