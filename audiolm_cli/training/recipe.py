"""The whole recipe: from a folder of recordings with manifest.tsv to a bundle.

    python -m audiolm_cli.training.recipe --data DATA --out weights/speech [--minutes 210]

Runs every step as its own process, in order, and resumes: what is finished is not done again, what was broken off goes
on. The minutes are shared out among the trainings; tokenizing the corpus and making outputs for the detector and
training it on them come on top.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from audiolm_cli.config import PRESETS
from audiolm_cli.training.parts.assemble import assemble, unpack
from audiolm_cli.training.trainer import add_matrices

SHARES = {
    "codec": 0.29,
    "decoder": 0.08,
    "tokenizer": 0.21,
    "coarse": 0.29,
    "fine": 0.08,
    "semantic": 0.05,
}

DROPOUT = {"coarse": "0.1", "fine": "0", "semantic": "0.1"}  # where the minutes are enough for several epochs


def steps(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """The command of every step, before there is a bundle and behind it."""
    common = ["--data", str(args.data), "--runs", str(args.runs)]
    stored = ["--matrices", args.matrices]
    device = ["--device", args.device] if args.device else []
    shared = 1 - (SHARES["fine"] if args.quantizers else 0)
    sizes, together = ["--preset", args.preset], []
    if args.processes > 1:
        together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.processes), "-m"]

    def train(module: str, part: str, *more: str) -> list[str]:
        minutes = f"{args.minutes * SHARES[part] / shared:.3f}"
        launcher = together if module != "codec" else []
        command = [*launcher, f"audiolm_cli.training.parts.{module}", *common, *stored, "--resume", *device]
        return [*command, "--minutes", minutes, *more]

    def given(option: str, value: object) -> list[str]:
        return [option, str(value)] if value else []

    sized, synthetic = [*sizes, *given("--clusters", args.clusters)], args.runs / "synthetic"
    tokenizer = train("tokenizer", "tokenizer", *sized, "--material", args.material)
    tokenize = [*together, "audiolm_cli.training.corpora.tokenize", *common, "--resume", *device]
    tokenize += ["--passes", str(args.passes)]
    read, heard = [], given("--synthetic", args.text and synthetic)
    if args.text:
        what = ["--text", str(args.text), "--data", str(args.data), "--out", str(synthetic), "--hours", str(args.hours)]
        read = [["audiolm_cli.training.corpora.synthetic", *what, "--processes", str(args.processes)]]
    if args.teacher:
        tokenizer = train("student", "tokenizer", *sized, "--teacher", args.teacher, *heard)
    stages = [stage for stage in DROPOUT if stage != "fine" or not args.quantizers]
    coarse, model = {"coarse": given("--coarse", args.quantizers)}, ["--model", str(args.out)]
    parts = [
        train("codec", "codec", *sizes, *given("--kind", args.kind), *(["--warm-start"] if args.codec else [])),
        train("codec", "decoder", "--decoder-only", "--rate", "3e-4"),
        *read,
        tokenizer,
        tokenize,
        *([*tokenize, *heard] for _ in read),
        *(
            train("lm", stage, *sizes, "--stage", stage, "--dropout", DROPOUT[stage], *coarse.get(stage, []))
            for stage in stages
        ),
    ]
    return parts, [
        ["audiolm_cli.training.parts.outputs", *common, *device, *model],
        ["audiolm_cli.training.parts.detector", *common, *device, *sizes, *model],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"), help="folder for caches and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("weights/speech"), help="the bundle's folder")
    parser.add_argument("--name", help="the bundle's name; its folder's by default")
    parser.add_argument("--minutes", type=float, default=210, help="of training in all")
    parser.add_argument("--preset", choices=PRESETS, default="speech", help="sizes")
    parser.add_argument("--kind", choices=("spectral", "waveform"), help="of the codec; the preset's by default")
    parser.add_argument("--clusters", type=int, help="semantic tokens; the preset's number by default")
    parser.add_argument("--material", choices=("speech", "piano"), default="speech", help="what the recordings are of")
    parser.add_argument(
        "--teacher", choices=("base", "tiny.en"), help="Whisper that teaches the tokenizer; none unless given"
    )
    parser.add_argument("--text", type=Path, help="folder of books that a synthetic voice reads to stage 1")
    parser.add_argument("--hours", type=float, default=200, help="of that reading")
    parser.add_argument("--codec", type=Path, help="bundle from whose codec training goes on")
    parser.add_argument("--quantizers", type=int, help="of stage 2, without a stage 3 behind it")
    parser.add_argument("--prompt-seconds", type=float, help="of a prompt that count by default")
    parser.add_argument("--passes", type=int, default=2, help="over the corpus when it is tokenized")
    parser.add_argument("--processes", type=int, default=1, help="that train together: GPUs, or cores of a CPU")
    parser.add_argument("--device", help="such as cpu or cuda; a GPU by default where there is one")
    add_matrices(parser)
    args = parser.parse_args()
    parts = args.runs / "parts"
    if args.codec and not (parts / "codec.safetensors").is_file():
        unpack(args.codec, parts, only=("codec",))
    (parts / "detector.safetensors").unlink(missing_ok=True)  # trained on what the stages made before
    settings = {"prompt_seconds": args.prompt_seconds} if args.prompt_seconds else None
    for group in steps(args):
        for step in group:
            print(">", " ".join(step), flush=True)
            subprocess.run([sys.executable, "-m", *step], check=True)
        assemble(parts, args.name or args.out.name, args.out, settings, args.quantizers)


if __name__ == "__main__":
    main()
