"""The whole program as fresh processes, by parts: `make bench`, or `python benchmarks/bench.py --json FILE`.

Every time is the least of several runs. What is behind the stages is measured by `decode.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from decode import machine

from audiolm_cli.bundles import bundle
from audiolm_cli.checks import threads
from audiolm_cli.errors import AudioLMError

PROMPT = Path(__file__).resolve().parent.parent / "examples" / "prompt.flac"
NEW_SECONDS = 7.0
TOKEN_SECONDS = 0.04  # of one semantic token
# what a command imports when it runs
IMPORTS = "import audiolm_cli.pipeline, audiolm_cli.command_line.batch, audiolm_cli.command_line.runner"


def process(*command: object) -> tuple[float, str]:
    """Wall seconds and stdout of a program."""
    start = time.perf_counter()
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(f"bench: {' '.join(map(str, command))}: {result.stderr}")
    return seconds, result.stdout


def by_parts(command: list[object], runs: int) -> dict[str, float]:
    """Seconds of the fastest of several cold runs: all, imports, each stage (with the loading of its weights), rest."""
    imports = min(process(sys.executable, "-c", IMPORTS)[0] for _ in range(runs))
    seconds, output = min(process(*command, "--json") for _ in range(runs))
    stages = {name: row["seconds"] for name, row in json.loads(output)["stages"].items()}
    return {"all": seconds, "imports": imports, **stages, "rest": seconds - imports - sum(stages.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech", help="name or folder of a bundle")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=threads(1), default=1, help="CPU threads; the program itself uses one")
    parser.add_argument("--runs", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        loaded = bundle.load(args.model, device=args.device, dtype=args.dtype)
    except AudioLMError as error:
        sys.exit(f"bench: {error}")
    figures: dict[str, Any] = {"machine": machine(loaded.device, loaded.dtype)}
    figures["bundle"] = f"{loaded.config.name} {loaded.identity[:12]}"
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items() if value is not None))
    audiolm = Path(sys.executable).with_name("audiolm")
    with tempfile.TemporaryDirectory() as folder:
        command: list[object] = [audiolm, "continue", PROMPT, "-o", f"{folder}/out.wav", "-fq"]
        command += [f"--{name}={getattr(args, name)}" for name in ("model", "device", "dtype", "threads")]
        figures["continue"] = by_parts([*command, "--duration", NEW_SECONDS], args.runs)
        figures["first_token"] = by_parts([*command, "--duration", TOKEN_SECONDS], args.runs)
    figures["help_seconds"] = min(process(audiolm, "--help")[0] for _ in range(args.runs))
    for name, row in (("continue, 7 s new", figures["continue"]), ("one semantic token", figures["first_token"])):
        print(f"{name}, cold: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in row.items()))
    print(f"audiolm --help: {figures['help_seconds']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
