"""How bundles are trained. `run` carries a recipe out; the bundle keeps it in its config.json, under `trained`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import Any

from audiolm_cli.config import BundleConfig, Domain, preset


@dataclass(frozen=True)
class Recipe:
    """What a bundle is trained from, with which sizes and for how long.

    Minutes are of two CPU cores with AVX2; the run of another machine may scale them.
    """

    preset: str  # sizes
    domain: Domain = "speech"
    codec_kind: str = ""  # "spectral" or "waveform"; the preset's by default
    from_codec: str = ""  # bundle whose codec is trained further
    codec: float = 61.0  # minutes
    decoder: float = 17.0  # minutes, against discriminators
    teacher: str = ""  # Whisper that teaches the tokenizer; none: masked prediction
    vocabulary: int = 0  # semantic tokens; the preset's number by default
    tokenizer: float = 44.0  # minutes
    passes: int = 2  # over the recordings when they become tokens; all but the first change voices
    read_hours: float = 0.0  # of books that a synthetic voice reads to stage 1
    semantic: float = 10.0  # minutes
    coarse: float = 61.0  # minutes
    quantizers: int = 0  # of stage 2 if there is no stage 3; 0: there is one
    fine: float = 17.0  # minutes
    prompt_seconds: float = 3.0  # of a prompt that condition by default

    @property
    def sizes(self) -> BundleConfig:
        return preset(self.preset)

    def scaled(self, minutes: float) -> Recipe:
        """The same with so many minutes of training in all."""
        names = [name for name in TRAININGS if name != "fine" or not self.quantizers]
        total = sum(getattr(self, name) for name in names)
        return replace(self, **{name: getattr(self, name) * minutes / total for name in names})


TRAININGS = ("codec", "decoder", "tokenizer", "coarse", "fine", "semantic")  # in order; fields with their minutes

RECIPES = {
    "speech": Recipe(
        "speech", codec=90, decoder=16, teacher="base", tokenizer=150, passes=3, read_hours=30, semantic=170,
        coarse=300, fine=40,
    ),
    "piano": Recipe("piano", "piano", from_codec="weights/speech", quantizers=6, prompt_seconds=4.0),
    "tiny": Recipe("tiny"),
    "paper": Recipe("paper"),
}  # fmt: skip


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The positional argument `recipe`, and an option for each field that replaces what the recipe has."""
    parser.add_argument("recipe", choices=RECIPES)
    group = parser.add_argument_group("instead of what the recipe has")
    kinds = {"str": str, "Domain": str, "float": float, "int": int}
    for field in fields(Recipe):
        name = field.name.replace("_", "-")
        group.add_argument(f"--{name}", type=kinds[str(field.type)], default=argparse.SUPPRESS)


def chosen(args: argparse.Namespace) -> Recipe:
    """The recipe that the arguments of `add_fields` ask for."""
    own: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(Recipe) if hasattr(args, f.name)}
    return replace(RECIPES[args.recipe], **own)
