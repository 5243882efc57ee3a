"""Assembles trained parts into a bundle; refuses parts that do not fit together.

    python -m audiolm_cli.training.parts.assemble --runs runs/speech --name speech --out weights/speech
    python -m audiolm_cli.training.parts.assemble --unpack --runs runs/more --out weights/speech
    python -m audiolm_cli.training.parts.assemble --quantize semantic coarse fine --runs runs/more

--unpack writes a bundle's parts back to RUNS, to fine-tune them (`--warm-start`) or to reuse them. --quantize stores
the matrices of trained parts in int8. A tokenizer changes its tokens with its precision, so quantize it before
`tokenize`; likewise quantize the stages before training the detector.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import NEEDS, TOKEN_SOURCES, check_parts, read_about, tensors_identity, write_tensors
from audiolm_cli.bundles.folder import PARTS, read_config, sha256
from audiolm_cli.bundles.hub import CARD
from audiolm_cli.config import BundleConfig
from audiolm_cli.errors import ModelError
from audiolm_cli.fields import from_json
from audiolm_cli.training.parts.detector_data import outputs_of
from audiolm_cli.training.recipes import RECIPES, Recipe

MAX_BYTES = 64_000_000  # of a bundle inside the wheel
# fields of config.json that do not come from the parts
SETTINGS = (
    *("domain", "sampling", "output", "prompt_seconds", "resampled_tokens", "guide_weights", "reference_gap"),
    *("familiar_bits", "familiar_semantic_bits", "pause_tokens", "max_pause"),
)
# settings that hold only for the parts they were measured on
MEASURED_ON = {
    **dict.fromkeys(("pause_tokens", "max_pause"), ("tokenizer",)),
    **dict.fromkeys(("familiar_bits", "familiar_semantic_bits"), ("tokenizer", "semantic", "coarse")),
}


def assemble(
    parts: Path, name: str, out: Path, given: dict[str, Any] | None = None, recipe: Recipe | None = None,
    trained: dict[str, Any] | None = None, most: float = MAX_BYTES,
) -> None:  # fmt: skip
    """Writes config.json, the parts and SHA256SUMS to `out`. Keeps its model card (`hub.CARD`), its recipe, and those
    SETTINGS of its config.json that are not `given`, without those MEASURED_ON other parts. `trained` is added to the
    training metadata of the parts. A recipe may have no stage 3; with its `quantizers`, the codec keeps these alone.

    Raises ModelError if a part is missing or was trained on the tokens of another codec or tokenizer, or if the bundle
    would be larger than `most` bytes; `out` is unchanged then.
    """
    quantizers = recipe.quantizers if recipe else 0
    found = [
        part
        for part in PARTS
        if (parts / f"{part}.safetensors").is_file() and (part != "fine" or recipe is None or recipe.has_fine)
    ]
    if missing := {"codec", "tokenizer", "semantic", "coarse"} - set(found):
        raise ModelError(f"{parts}: no {sorted(missing)[0]}.safetensors")
    tensors = {part: load_file(parts / f"{part}.safetensors") for part in found}
    about = {part: read_about(parts / f"{part}.safetensors") for part in found}
    identity = {part: tensors_identity(tensors[part], prefixes) for part, prefixes in TOKEN_SOURCES.items()}
    tokens, final = about["coarse"]["tokens"], dict(identity)
    if quantizers:
        tokens = {**tokens, "quantizers": quantizers}
        tensors["codec"]["quantizer.codebooks"] = tensors["codec"]["quantizer.codebooks"][:quantizers].clone()
        final["codec"] = tensors_identity(tensors["codec"], TOKEN_SOURCES["codec"])
    depends: dict[str, dict[str, str]] = {part: {"self": value} for part, value in final.items()}
    for part in found:
        for source in NEEDS.get(part, ()):
            known = final if part == "detector" else identity  # the detector was trained on the final codec
            if about[part]["depends"].get(source) != known[source]:
                raise ModelError(f"{parts}/{part}.safetensors was trained on the tokens of another {source}")
            depends.setdefault(part, {})[source] = final[source]
    before = json.loads((out / "config.json").read_text()) if (out / "config.json").is_file() else {}
    other = {
        part for part in ("tokenizer", "semantic", "coarse") if not _is_same(out / f"{part}.safetensors", tensors[part])
    }
    settings = {
        field: before[field] for field in SETTINGS if field in before and other.isdisjoint(MEASURED_ON.get(field, ()))
    }
    kept = {"recipe": before["trained"]["recipe"]} if "recipe" in before.get("trained", {}) else {}
    if recipe:
        kept = {"recipe": dataclasses.asdict(recipe)}
        settings |= {"prompt_seconds": recipe.prompt_seconds, "domain": recipe.domain}
    settings |= given or {}
    value = {
        "name": name,
        "tokens": tokens,
        "fine": None,
        **{part: about[part]["config"] for part in found},
        **settings,
        "depends": depends,
        "trained": {part: about[part]["trained"] for part in found} | kept | (trained or {}),
        "format_version": 2 if any(map(int8.is_used, tensors.values())) else 1,
    }
    config = from_json(BundleConfig, json.loads(json.dumps(value)))
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for part in found:
        save_file(tensors[part], fresh / f"{part}.safetensors")
        (fresh / f"{part}.safetensors").chmod(0o644)  # safetensors writes files that only their owner can read
    (fresh / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    for card in itertools.chain.from_iterable(out.glob(pattern) for pattern in CARD):
        shutil.copy(card, fresh)
    write_sums(fresh)
    check_parts(fresh)
    trained_on = about["detector"]["trained"].get("bundle") if "detector" in found else None
    if trained_on and trained_on != outputs_of(fresh):
        raise ModelError(f"{parts}/detector.safetensors was trained on the outputs of other weights")
    if (size := sum(file.stat().st_size for file in fresh.iterdir())) > most:
        raise ModelError(f"{fresh}: {size / 1e6:.1f} MB, more than {most / 1e6:.0f} MB")
    shutil.rmtree(out, ignore_errors=True)
    fresh.replace(out)


def _is_same(file: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a part's file exists and has these tensors."""
    return file.is_file() and tensors_identity(load_file(file)) == tensors_identity(tensors)


def unpack(folder: Path, parts: Path, only: Sequence[str] = PARTS) -> None:
    """Writes a bundle's parts, or `only` some, to `parts` as training would; replaces existing ones.

    Raises ModelError if the bundle is damaged.
    """
    check_parts(folder)
    config = json.loads(json.dumps(dataclasses.asdict(read_config(folder))))
    parts.mkdir(parents=True, exist_ok=True)
    for part in only:
        if config[part] is None:
            continue
        about = {
            "config": config[part],
            "tokens": config["tokens"],
            "depends": config["depends"][part],
            "trained": config["trained"][part],
        }
        save_file(
            load_file(folder / f"{part}.safetensors"), parts / f"{part}.safetensors", {"about": json.dumps(about)}
        )


def quantize(parts: Path, names: Sequence[str]) -> None:
    """Stores the matrices of trained parts that `int8.MATRICES` names in int8, unless they are already.

    Raises ModelError if there is no such part.
    """
    for part in names:
        file = parts / f"{part}.safetensors"
        about = read_about(file)
        tensors = int8.stored(int8.restored(load_file(file)), int8.MATRICES[part])
        write_tensors(file, tensors, {"about": json.dumps(about)})


def write_sums(folder: Path) -> None:
    """SHA256SUMS over all other files of a bundle, as sha256sum writes it."""
    files = sorted(file for file in folder.iterdir() if file.name != "SHA256SUMS")
    lines = [f"{sha256(file)}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"))
    parser.add_argument("--name", default="speech")
    parser.add_argument("--out", type=Path, default=Path("weights/speech"))
    parser.add_argument(
        "--settings", type=json.loads, help=f"JSON with any of {', '.join(SETTINGS)}; by default they stay"
    )
    parser.add_argument("--recipe", choices=RECIPES, help="the recipe of the training, which the bundle keeps")
    parser.add_argument("--unpack", action="store_true", help="write the parts of the bundle OUT to RUNS")
    parser.add_argument("--quantize", nargs="+", choices=int8.MATRICES, help="store these parts of RUNS in int8")
    args = parser.parse_args()
    if args.quantize:
        return quantize(args.runs / "parts", args.quantize)
    if args.unpack:
        return unpack(args.out, args.runs / "parts")
    assemble(args.runs / "parts", args.name, args.out, args.settings, RECIPES[args.recipe] if args.recipe else None)


if __name__ == "__main__":
    main()
