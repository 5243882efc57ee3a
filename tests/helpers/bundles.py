"""A tiny bundle with random weights, built the way training builds real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import torch

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import NEEDS, TOKEN_SOURCES, Bundle, load, save_part, tensors_identity
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import STAGES, BundleConfig, preset
from audiolm_cli.detector import make_detector
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.parts.assemble import SETTINGS, assemble


def modules(config: BundleConfig, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Every part of a bundle with random weights that give lively tokens."""
    torch.manual_seed(seed)
    spec = config.tokens
    parts: dict[str, torch.nn.Module] = {
        "codec": SoundStream(config.codec, spec),
        "tokenizer": SemanticTokenizer(config.tokenizer, spec),
        "semantic": stage_model(config.semantic, spec, "semantic"),
        "coarse": stage_model(config.coarse, spec, "coarse"),
    }
    if config.fine:
        parts["fine"] = stage_model(config.fine, spec, "fine")
    if config.detector:
        parts["detector"] = make_detector(config)
    generator, tokenizer = torch.Generator().manual_seed(seed), cast("SemanticTokenizer", parts["tokenizer"])
    if config.tokenizer.units == "centroids":
        hidden = tokenizer.eval().represent(torch.randn(1, 64000, generator=generator))[0]
        tokenizer.mean.copy_(hidden.mean(0))
        tokenizer.scale.copy_(1 / hidden.std(0))
        tokenizer.centroids.normal_(generator=generator)
    for stage in ("semantic", "coarse", "fine"):
        for parameter in parts[stage].parameters() if stage in parts else ():
            parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    return parts


def write_parts(folder: Path, config: BundleConfig, seed: int = 0, *, in_int8: bool = False) -> None:
    """The parts of a random bundle as training leaves them, with matrices `in_int8` or in bfloat16."""
    parts = modules(config, seed)
    matrices = {name: int8.MATRICES.get(name, ()) if in_int8 else () for name in parts}
    identity = {
        name: tensors_identity(int8.stored(parts[name].state_dict(), matrices[name]), prefixes)
        for name, prefixes in TOKEN_SOURCES.items()
    }
    for name, module in parts.items():
        about = {
            "config": dataclasses.asdict(getattr(config, name)),
            "tokens": dataclasses.asdict(config.tokens),
            "depends": {source: identity[source] for source in NEEDS.get(name, ())},
            "trained": {"steps": 0},
        }
        save_part(folder / f"{name}.safetensors", module, about, matrices[name])


def in_memory(config: BundleConfig, parts: dict[str, torch.nn.Module], dtype: torch.dtype = torch.float32) -> Bundle:
    """A bundle of these parts as if it had been loaded; the stages get the dtype."""
    identity = {part: {"self": ""} for part in TOKEN_SOURCES}
    bundle = Bundle(Path(), dataclasses.replace(config, depends=identity), torch.device("cpu"), dtype)
    for name, module in parts.items():
        setattr(bundle, name, module.eval().requires_grad_(False).to(dtype if name in STAGES else None))
    return bundle


def write_bundle(folder: Path, config: BundleConfig | None = None, seed: int = 0, *, in_int8: bool = False) -> Path:
    """A random bundle in `folder`; the sizes of the preset `tiny` by default. Matrices `in_int8`: format version 2."""
    config = config or preset("tiny")
    parts = folder.with_name(folder.name + ".parts")
    write_parts(parts, config, seed, in_int8=in_int8)
    assemble(parts, config.name, folder, {field: dataclasses.asdict(config)[field] for field in SETTINGS})
    return folder


def with_short_windows(folder: Path) -> Bundle:
    """A random bundle with windows of a second, so that two seconds slide."""
    config = preset("tiny")
    short = {name: dataclasses.replace(getattr(config, name), window_seconds=1.0) for name in STAGES}
    written = write_bundle(folder / "tiny", dataclasses.replace(config, **short))
    return load(str(written), device="cpu", dtype="float32")
