"""The engine by stages: `python benchmarks/decode.py [--model DIR | --model paper] --json FILE`.

Batches of continuations of a 3 s prompt, tokens in and tokens out, drawn as the bundle does by default: prefill and
decode rates, milliseconds a step, bytes that a step must read against the memory bandwidth of the machine, and the
real-time factor (seconds spent per second of new audio, of all outputs together). Every time is the least of several
runs. `--model paper` has random weights. AUDIOLM_KERNEL chooses what decodes; the native kernel's steps include the
prefill. With `--split` one step of torch's at batch 1 without guidance by parts, with `--plot FILE` seconds and memory
against length.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the program does

import torch

from audiolm_cli import native
from audiolm_cli.bundles import bundle
from audiolm_cli.checks import threads
from audiolm_cli.config import STAGES, BundleConfig, preset
from audiolm_cli.errors import AudioLMError
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.language_models.layers import Linear
from audiolm_cli.language_models.sampling import Noise, StageSampling, draw
from audiolm_cli.language_models.stages import StageContext, complete, continue_coarse, continue_semantic
from audiolm_cli.language_models.transformer import Decoder, KVCache, Stack
from audiolm_cli.native.model import give

PROMPT_SECONDS = 3.0
SAMPLING = StageSampling(temperature=0.9, top_k=0, top_p=0.95)
COLUMNS = {
    "prefill_tokens_per_second": 0,
    "tokens_per_second": 0,
    "milliseconds_per_step": 3,
    "gigabytes_per_second": 1,
    "real_time_factor": 4,
}
Models = dict[str, Stack]


class Clock:
    """Wraps a model's prefill and step: seconds and positions of the one, number and bytes read of the other."""

    def __init__(self, model: Decoder):
        self.model, self.inner_prefill, self.inner_step = model, model.prefill, model.step
        self.seconds, self.positions, self.steps, self.bytes = 0.0, 0, 0, 0
        self.weights = step_weights(model)
        model.__dict__.update(prefill=self.prefill, step=self.step)

    def remove(self) -> None:
        del self.model.__dict__["prefill"], self.model.__dict__["step"]

    def prefill(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        finish(ids.device)
        start = time.perf_counter()
        hidden = self.inner_prefill(ids, *rest)
        finish(ids.device)
        self.seconds += time.perf_counter() - start
        self.positions += ids.shape[1]
        return hidden

    def step(
        self, ids: torch.Tensor, features: torch.Tensor, rotation: Any, cache: KVCache, *rest: Any
    ) -> torch.Tensor:
        self.steps += 1
        position = cache.keys[..., 0, :].numel() + cache.values[..., 0, :].numel()  # of all layers and slots
        self.bytes += self.weights + position * rest[1] * cache.keys.element_size()
        return self.inner_step(ids, features, rotation, cache, *rest)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def choices(model: Decoder) -> int:
    """Ids that a token is drawn from."""
    return model.spec.semantic_vocabulary if model.stage == "semantic" else model.spec.codebook_size


def step_linears(model: Decoder) -> list[Linear]:
    """The linear layers of a step; the context of frames is worked out before the steps."""
    before = model.context if isinstance(model, FrameTransformer) else None
    return [module for module in model.modules() if isinstance(module, Linear) and module is not before]


def step_weights(model: Decoder) -> int:
    """Bytes of weights that one step reads: all but the embeddings, of which it reads the rows that logits need."""
    rows = choices(model) * (model.spec.coarse if model.config.layout == "frames" else 1)
    shapes = [p.shape for module in model.modules() if not isinstance(module, torch.nn.Embedding | Linear)
              for p in module.parameters(recurse=False)]  # fmt: skip
    sizes = sum(shape.numel() for shape in shapes) + sum(m.in_features * m.out_features for m in step_linears(model))
    return (sizes + rows * model.config.width) * model.ids.weight.element_size()


def run(models: Models, config: BundleConfig, batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """One batch through the stages, its tokens drawn at random: the figures of each stage."""
    spec = config.tokens
    known, total = (round(s * spec.semantic_rate) for s in (PROMPT_SECONDS, PROMPT_SECONDS + seconds))
    per = spec.frames_per_semantic
    generator = torch.Generator().manual_seed(0)
    semantic = [torch.randint(spec.semantic_vocabulary, (total,), generator=generator) for _ in range(batch)]
    shape = (spec.quantizers, total * per)
    codes = [torch.randint(spec.codebook_size, shape, generator=generator) for _ in range(batch)]
    noise, prompt = [Noise(0, n, 0) for n in range(batch)], [c[:, : known * per] for c in codes]
    drawn = config.sampling.stage
    calls: dict[str, Callable[[Any], object]] = {
        "semantic": lambda m: continue_semantic(
            m, [s[:known] for s in semantic], [total] * batch, StageContext(noise, drawn("semantic"), batch)
        ),
        "coarse": lambda m: continue_coarse(
            m, semantic, [p[: spec.coarse] for p in prompt], StageContext(noise, drawn("coarse"), batch)
        ),
        "fine": lambda m: complete(
            m, [c[: spec.coarse] for c in codes], prompt, StageContext(noise, drawn("fine"), batch)
        ),
    }  # fmt: skip
    tokens = {"semantic": 1, "coarse": per * spec.coarse, "fine": per * spec.fine}
    figures = {}
    for stage, model in models.items():
        natively = isinstance(model, Decoder) and model.native is not None
        clock = Clock(model) if isinstance(model, Decoder) and not natively else None
        start = time.perf_counter()
        calls[stage](model)
        finish(model.ids.weight.device)
        spent = time.perf_counter() - start
        made = (total - known) * tokens[stage] * batch
        row = {"seconds": spent, "real_time_factor": spent / seconds / batch, "tokens_per_second": made / spent}
        if clock:
            clock.remove()
            decoding = spent - clock.seconds
            row["tokens_per_second"] = made / decoding
            row["prefill_tokens_per_second"] = clock.positions / clock.seconds
            row["milliseconds_per_step"] = 1000 * decoding / max(1, clock.steps)
            row["gigabytes_per_second"] = clock.bytes / decoding / 1e9
        if natively:  # prefill and steps in one
            steps = (total - known) * (per if model.config.layout == "frames" else tokens[stage])
            row["milliseconds_per_step"] = 1000 * spent / steps
            row["gigabytes_per_second"] = (
                steps * step_weights(cast("Decoder", model)) / model.ids.weight.element_size() / spent / 1e9
            )
        figures[stage] = row
    return figures


def best(runs: int, call: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call, the least mean of `times` over several runs."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(times):
            call()
        found.append((time.perf_counter() - start) / times)
    return min(found)


@torch.inference_mode()
def split(model: Decoder, length: int, runs: int) -> dict[str, float]:
    """Microseconds of one step at batch 1 with `length` positions before it: the whole, and its parts alone.

    The parts run in the order of a step, over all layers, so that weights come from where they come from in a step.
    """
    weight, config, frames = model.ids.weight, model.config, model.config.layout == "frames"
    size, linears = choices(model), step_linears(model)
    rows = -(-(length + 1) // 64) * 64
    cache = KVCache.allocate(model, 1, rows)
    quantizers = model.spec.coarse if frames else 1
    ids = torch.zeros((1, quantizers) if frames else (1,), dtype=torch.int64, device=weight.device)
    uniform = torch.rand((1, quantizers) if frames else (1,), device=weight.device)
    features, rotation = weight.new_zeros(1, config.width), model.rotation(ids.new_full((1, 1), length))
    bias, where = weight.new_zeros(1, 1, 1, rows), (slice(None), slice(None), length)
    hidden = model.step(ids, features, rotation, cache, where, rows, bias)
    inputs = {width: weight.new_zeros(1, 1, width) for width in {linear.in_features for linear in linears}}
    query = weight.new_zeros(1, config.heads, 1, config.width // config.heads)
    logits = model.logits(hidden, 0, size)

    def whole() -> None:
        model.draw(hidden, uniform, 0, size, SAMPLING)
        model.step(ids, features, rotation, cache, where, rows, bias)

    def products() -> None:
        for linear in linears:
            linear(inputs[linear.in_features])
        for q in range(quantizers):
            model.logits(hidden, q * getattr(model, "rows", 0), size)

    def attention() -> None:
        for block, keys, values in zip(model.layers(), cache.keys, cache.values, strict=True):
            block.attend_cached(query, keys, values, bias)

    def sampling() -> None:
        for q in range(quantizers):
            draw(logits, uniform[..., q] if frames else uniform, SAMPLING)

    calls = {"step": whole, "matrix products": products, "attention": attention, "sampling": sampling}
    parts = {name: 1e6 * best(runs, call, 100) for name, call in calls.items()}
    rest = parts["step"] - sum(parts[name] for name in calls if name != "step")
    return {**parts, "dispatch and the rest": rest, "step / matrix products": parts["step"] / parts["matrix products"]}


def bandwidth(device: torch.device) -> float:
    """Gigabytes a second of a large copy, read and written."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        finish(device)

    copy()
    return 2 * source.numel() / best(5, copy) / 1e9


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "cpu": f"{name[1] if name else platform.processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "kernel": native.described() if device.type == "cpu" else "torch",
        "load": round(os.getloadavg()[0], 2),
    }


def stages(name: str, device: str, dtype: str) -> tuple[Models, BundleConfig, torch.device, torch.dtype]:
    """The models of a bundle, or of the preset `paper` with random weights."""
    if name != "paper":
        loaded = bundle.load(name, device=device, dtype=dtype)
        found: Models = {s: getattr(loaded, s) for s in STAGES if getattr(loaded, s) is not None}
        return found, loaded.config, loaded.device, loaded.dtype
    config, where = preset("paper"), bundle.pick_device(device)
    kind, found = bundle.pick_dtype(dtype, where), {}
    for stage in STAGES:
        model = stage_model(getattr(config, stage), config.tokens, stage)  # type: ignore[arg-type]
        found[stage] = model.to(where, kind).eval().requires_grad_(False)
        if where.type == "cpu":
            give(found[stage])
        found[stage].pack()
    return found, config, where, kind


def plot(file: Path, models: Models, config: BundleConfig, lengths: list[float]) -> dict[str, dict[str, float]]:
    """Seconds per second of audio and peak memory for rising lengths, as figures and as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found: dict[str, dict[str, float]] = {}
    for length in lengths:
        rows = run(models, config, 1, length)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[f"{length:g} s"] = {stage: rows[stage]["seconds"] for stage in rows} | {"peak_megabytes": peak}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for stage in models:
        left.plot(lengths, [row[stage] for row in found.values()], "o-", label=stage)
    left.set(xlabel="new audio (s)", ylabel="seconds", title="time")
    left.legend()
    right.plot(lengths, [row["peak_megabytes"] for row in found.values()], "o-")
    right.set(xlabel="new audio (s)", ylabel="MB, whole process", title="peak memory", ylim=(0, None))
    figure.savefig(file, dpi=120)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech", help="name or folder of a bundle, or paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=threads(1), default=1, help="CPU threads; the program itself uses one")
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--lengths", default="10", help="seconds of new audio")
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--split", action="store_true", help="one step by parts")
    parser.add_argument("--plot", type=Path, help="PNG of time and memory against length")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        models, config, device, dtype = stages(args.model, args.device, args.dtype)
    except AudioLMError as error:
        sys.exit(f"decode: {error}")
    lengths, batches = ([float(x) for x in text.split(",") if x] for text in (args.lengths, args.batches))
    figures: dict[str, Any] = {"machine": machine(device, dtype), "model": args.model}
    figures["layouts"] = {stage: asdict(model.config) for stage, model in models.items()}
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items() if value is not None))
    run(models, config, 1, 0.4)  # warms up
    if args.plot:  # first: peak memory never falls
        figures["length"] = plot(args.plot, models, config, lengths)
    figures["bandwidth"] = bandwidth(device)
    print(f"a large copy moves {figures['bandwidth']:.1f} GB/s")
    for seconds in lengths:
        for batch in map(int, batches):
            runs = [run(models, config, batch, seconds) for _ in range(args.runs)]
            table = {stage: min((rows[stage] for rows in runs), key=lambda row: row["seconds"]) for stage in models}
            figures.setdefault("runs", {})[f"{seconds:g} s, batch {batch}"] = table
            whole = sum(row["seconds"] for row in table.values())
            print(f"\n{seconds:g} s, batch {batch}: {whole:.2f} s, real-time factor {whole / seconds / batch:.3f}")
            print(f"{'stage':10}" + "".join(f"{name.replace('_', ' '):>27}" for name in COLUMNS))
            for stage, row in table.items():
                cells = (
                    f"{row[name]:27.{digits}f}" if name in row else f"{'-':>27}" for name, digits in COLUMNS.items()
                )
                print(f"{stage:10}" + "".join(cells))
    if args.split:
        for stage, model in models.items():
            if isinstance(model, Decoder) and model.native is None:
                figures.setdefault("split", {})[stage] = split(model, 320, args.runs)
                cells = (f"{name} {value:.2f}" for name, value in figures["split"][stage].items())
                print(f"\none step of {stage}, batch 1, microseconds: " + ", ".join(cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
