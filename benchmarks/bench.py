"""The figures on speed: `make bench`, or `python benchmarks/bench.py --model DIR --json FILE`.

The whole program as a fresh process, then every stage by itself in this one, at several batch sizes. Every time is the
least of several runs. The real-time factor is seconds spent per second of new audio, of all outputs together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the program does

import numpy as np
import torch

from audiolm_cli import audio, bundle, pipeline
from audiolm_cli.errors import AudioLMError
from audiolm_cli.transformer import Transformer

PROMPT = Path(__file__).resolve().parent.parent / "examples" / "prompt.flac"
PROMPT_SECONDS, NEW_SECONDS, BATCHES = 3.0, 7.0, (1, 8)
TOKEN_SECONDS = 0.04  # of one semantic token
Table = dict[str, dict[str, float]]  # of each stage: name of a figure -> value
COLUMNS = {"prefill_tokens_per_second": 0, "tokens_per_second": 0, "milliseconds_per_step": 3, "real_time_factor": 3}


class PrefillClock:
    """Seconds and tokens of a model's prefills, timed in place of the model's own method."""

    def __init__(self, model: Transformer):
        self.model, self.prefill, self.seconds, self.tokens = model, model.prefill, 0.0, 0
        self.finish = torch.cuda.synchronize if model.ids.weight.is_cuda else lambda: None
        model.__dict__["prefill"] = self._timed

    def _timed(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.finish()
        start = time.perf_counter()
        hidden = self.prefill(ids, *rest)
        self.finish()
        self.seconds += time.perf_counter() - start
        self.tokens += ids.numel()
        return hidden


def one_run(loaded: bundle.Bundle, samples: np.ndarray, batch: int, duration: float) -> tuple[float, Table]:
    """Seconds to the first new token, and the figures of every stage, for a batch of continuations."""
    models = {"semantic": loaded.semantic, "coarse": loaded.coarse, "fine": loaded.fine}
    clocks = {stage: PrefillClock(model) for stage, model in models.items() if isinstance(model, Transformer)}
    prompts = [pipeline.Prompt(samples, position, seed=1) for position in range(batch)]
    told: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "semantic":
            told.append(time.perf_counter())

    options: Any = {"prompt_seconds": PROMPT_SECONDS, "duration": duration, "batch_size": batch, "progress": progress}
    start = time.perf_counter()
    sampling = pipeline.Sampling(**asdict(loaded.config.sampling))
    *_, result = pipeline.continue_(loaded, prompts, sampling=sampling, **options)
    figures = {}
    for stage, seconds in result.stage_seconds.items():
        row = {"seconds": seconds, "real_time_factor": seconds / (duration * batch)}
        if stage in clocks:
            del clocks[stage].model.__dict__["prefill"]
            row["prefill_tokens_per_second"] = clocks[stage].tokens / clocks[stage].seconds
            seconds -= clocks[stage].seconds
            row["milliseconds_per_step"] = 1000 * seconds * batch / result.stage_tokens[stage]
        row["tokens_per_second"] = result.stage_tokens[stage] / seconds
        figures[stage] = row
    return told[0] - start, figures


def process(*arguments: object) -> float:
    """Wall seconds of the installed program."""
    command = [str(Path(sys.executable).with_name("audiolm")), *map(str, arguments)]
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"bench: {' '.join(command)}: {result.stderr}")
    return time.perf_counter() - start


def machine(loaded: bundle.Bundle) -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "cpu": f"{name[1] if name else platform.processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "load": round(os.getloadavg()[0], 2),
        "bundle": f"{loaded.config.name} {loaded.identity[:12]}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech", help="name or folder of a bundle")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, as many as the program uses by itself")
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        loaded = bundle.load(args.model, device=args.device, dtype=args.dtype)
    except AudioLMError as error:
        sys.exit(f"bench: {error}")
    figures: dict[str, Any] = {"machine": machine(loaded)}
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items() if value is not None))
    with tempfile.TemporaryDirectory() as folder:
        command = ["continue", PROMPT, "-o", f"{folder}/out.wav", "-fq"]
        command += [f"--{name}={getattr(args, name)}" for name in ("model", "device", "dtype", "threads")]
        for name, duration in (("first_token_seconds", TOKEN_SECONDS), ("continue_seconds", NEW_SECONDS)):
            figures[name] = min(process(*command, "--duration", duration) for _ in range(args.runs))
    figures["help_seconds"] = min(process("--help") for _ in range(args.runs))
    print(f"audiolm continue, {NEW_SECONDS:g} s new, cold process: {figures['continue_seconds']:.2f} s")
    print(f"the same for one semantic token, {TOKEN_SECONDS:g} s new: {figures['first_token_seconds']:.2f} s")
    print(f"audiolm --help: {figures['help_seconds']:.2f} s")
    samples = audio.read(PROMPT, loaded.config.tokens.sample_rate).samples
    one_run(loaded, samples, 1, 0.2)  # loads and warms up
    for batch in BATCHES:
        runs = [one_run(loaded, samples, batch, NEW_SECONDS) for _ in range(args.runs)]
        first = min(first for first, _ in runs)
        table = {stage: min((rows[stage] for _, rows in runs), key=lambda row: row["seconds"]) for stage in runs[0][1]}
        figures[f"batch_{batch}"] = {"first_token_seconds": first, "stages": table}
        print(f"\nbatch {batch}, first new token after {1000 * first:.0f} ms")
        print(f"{'stage':10}" + "".join(f"{name.replace('_', ' '):>27}" for name in COLUMNS))
        for stage, row in table.items():
            cells = (f"{row[name]:27.{digits}f}" if name in row else f"{'-':>27}" for name, digits in COLUMNS.items())
            print(f"{stage:10}" + "".join(cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
