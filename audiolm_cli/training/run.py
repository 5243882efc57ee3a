"""Runs a whole recipe: from a folder of recordings with manifest.tsv to a bundle.

    python -m audiolm_cli.training.run speech --data DATA --text BOOKS --out weights/speech [--minutes 210]
    python -m audiolm_cli.training.run piano --data CORPUS --midi DATA --out weights/piano

Runs every step in its own process, in order, and resumes: finished steps are skipped, interrupted ones continue.
--minutes counts the trainings only; synthesising speech, tokenizing, and training the detector come on top.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from audiolm_cli.training.parts.assemble import assemble, unpack
from audiolm_cli.training.recipes import TRAININGS, Recipe, add_fields, chosen
from audiolm_cli.training.trainer import add_matrices

DROPOUT = {"coarse": "0.1", "fine": "0", "semantic": "0.1"}  # if the minutes suffice for several epochs


def steps(recipe: Recipe, args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """The commands of all steps: those before the bundle exists, and those after."""
    common = ["--data", str(args.data), "--runs", str(args.runs)]
    device = ["--device", args.device] if args.device else []
    named, together = ["--recipe", args.recipe], []
    if args.processes > 1:
        together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.processes), "-m"]

    def train(module: str, part: str, *more: str) -> list[str]:
        launcher = together if module != "codec" else []
        command = [*launcher, f"audiolm_cli.training.parts.{module}", *common, "--matrices", args.matrices, "--resume"]
        return [*command, *device, "--minutes", f"{getattr(recipe, part):.3f}", *more]

    def given(option: str, value: object) -> list[str]:
        return [option, str(value)] if value else []

    synthetic, heard = args.runs / "synthetic", given("--synthetic", recipe.read_hours and args.runs / "synthetic")
    clusters = given("--clusters", recipe.vocabulary)
    tokenizer = train("tokenizer", "tokenizer", *named, *clusters)
    if recipe.teacher:
        tokenizer = train("student", "tokenizer", *named, *clusters, "--teacher", recipe.teacher, *heard)
    tokenize = [*together, "audiolm_cli.training.corpora.tokenize", *common, "--resume", *device]
    tokenize += ["--passes", str(recipe.passes)]
    played, read = [], []
    if recipe.played:
        what = ["--data", str(args.midi), "--runs", str(args.runs), "--passes", str(recipe.played)]
        played = [["audiolm_cli.training.corpora.played", *what, "--processes", str(args.processes)]]
    if recipe.read_hours:
        what = ["--text", str(args.text), "--data", str(args.data), "--out", str(synthetic)]
        what += ["--hours", str(recipe.read_hours), "--processes", str(args.processes)]
        read = [["audiolm_cli.training.corpora.synthetic", *what]]
    stages = [stage for stage in DROPOUT if stage != "fine" or recipe.has_fine]
    coarse, model = {"coarse": given("--coarse", recipe.quantizers)}, ["--model", str(args.out)]
    partials = ["--partials"] if recipe.domain == "piano" else []
    decoder = ["--windows", "--noise", "--rate", "4e-4"] if recipe.noise else ["--rate", "3e-4", *partials]
    more = [*(["--warm-start"] if recipe.from_codec else []), *partials]
    parts = [
        train("codec", "codec", *named, *given("--kind", recipe.codec_kind), *more),
        train("codec", "decoder", "--decoder-only", *decoder),
        *read,
        tokenizer,
        tokenize,
        *([*tokenize, *heard] for _ in read),
        *played,
        *(
            train("lm", stage, *named, "--stage", stage, "--dropout", DROPOUT[stage], *coarse.get(stage, []))
            for stage in stages
        ),
    ]
    return parts, [
        ["audiolm_cli.training.parts.detector_data", *common, *device, *model],
        ["audiolm_cli.training.parts.detector", *common, *device, *named, *model],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--text", type=Path, help="folder of books, for recipes with synthetic speech")
    parser.add_argument(
        "--midi", type=Path, help="folder with midi, for recipes with performances that are not rendered"
    )
    parser.add_argument("--runs", type=Path, help="folder for caches and checkpoints (default runs/RECIPE)")
    parser.add_argument("--out", type=Path, help="the bundle's folder (default weights/RECIPE)")
    parser.add_argument("--name", help="the bundle's name; its folder's by default")
    parser.add_argument("--minutes", type=float, help=f"for {', '.join(TRAININGS)} together, divided as in the recipe")
    parser.add_argument("--processes", type=int, default=1, help="that train together: GPUs, or CPU cores")
    parser.add_argument("--device", help="such as cpu or cuda; by default a GPU if there is one")
    add_matrices(parser)
    add_fields(parser)
    args = parser.parse_args()
    recipe = chosen(args)
    if args.minutes:
        recipe = recipe.scaled(args.minutes)
    if recipe.read_hours and not args.text:
        parser.error("the recipe has books read aloud: --text FOLDER, or --read-hours 0")
    if recipe.played and not args.midi:
        parser.error("the recipe has MIDI performances: --midi FOLDER, or --played 0")
    args.runs, args.out = args.runs or Path("runs") / args.recipe, args.out or Path("weights") / args.recipe
    parts = args.runs / "parts"
    if recipe.from_codec and not (parts / "codec.safetensors").is_file():
        unpack(Path(recipe.from_codec), parts, only=("codec",))
    (parts / "detector.safetensors").unlink(missing_ok=True)  # it was trained on the previous stages' outputs
    for group in steps(recipe, args):
        for step in group:
            print(">", " ".join(step), flush=True)
            subprocess.run([sys.executable, "-m", *step], check=True)
        assemble(parts, args.name or args.out.name, args.out, recipe=recipe)


if __name__ == "__main__":
    main()
