"""How bundles are trained. `run` executes a recipe; the bundle keeps it in its config.json, under `trained`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import Any

from audiolm_cli.config import BundleConfig, Domain, preset


@dataclass(frozen=True)
class Recipe:
    """The training of a bundle: data, sizes and durations.

    Minutes are those of two CPU cores with AVX2; `run` can scale them for other machines.
    """

    preset: str  # sizes
    domain: Domain = "speech"
    codec_kind: str = ""  # "spectral" or "waveform"; the preset's by default
    from_codec: str = ""  # bundle whose codec training continues from
    codec: float = 61.0  # minutes
    decoder: float = 17.0  # minutes of the decoder alone, against discriminators
    noise: bool = False  # instead with noise to shape, without discriminators
    teacher: str = ""  # of the tokenizer: a Whisper model, or the `notes` of a rendered corpus; none: masked prediction
    vocabulary: int = 0  # semantic tokens; the preset's number by default
    tokenizer: float = 44.0  # minutes
    passes: int = 2  # over the recordings when tokenizing; all but the first augment voices
    read_hours: float = 0.0  # of synthetic speech, books read aloud, for stage 1
    played: int = 0  # passes over MIDI performances in other keys and tempi, for stage 1
    semantic: float = 10.0  # minutes
    coarse: float = 61.0  # minutes
    fine: float = 17.0  # minutes; 0: there is no stage 3, and outputs have the coarse codes alone
    quantizers: int = 0  # of stage 2 in a bundle without stage 3, whose codec has no others
    prompt_seconds: float = 3.0  # default length of the prompt

    @property
    def sizes(self) -> BundleConfig:
        return preset(self.preset)

    @property
    def has_fine(self) -> bool:
        """Whether there is a stage 3."""
        return bool(self.fine) and not self.quantizers

    def scaled(self, minutes: float) -> Recipe:
        """The same recipe with this many minutes of training in total."""
        names = [name for name in TRAININGS if name != "fine" or self.has_fine]
        total = sum(getattr(self, name) for name in names)
        return replace(self, **{name: getattr(self, name) * minutes / total for name in names})


TRAININGS = ("codec", "decoder", "tokenizer", "coarse", "fine", "semantic")  # in order; fields with their minutes

RECIPES = {
    "speech": Recipe(
        "speech", codec=90, decoder=60, noise=True, teacher="base", tokenizer=150, passes=3, read_hours=30,
        semantic=170, coarse=300, fine=0,
    ),
    "piano": Recipe(
        "piano", "piano", from_codec="weights/speech", quantizers=6, prompt_seconds=4.0, codec=90, teacher="notes",
        tokenizer=50, passes=1, played=4, semantic=240, coarse=120,
    ),
    "tiny": Recipe("tiny"),
    "paper": Recipe("paper"),
}  # fmt: skip


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument `recipe`, and an option for each field to override the recipe's value."""
    parser.add_argument("recipe", choices=RECIPES)
    group = parser.add_argument_group("instead of what the recipe has")
    kinds: dict[str, dict[str, Any]] = {kind.__name__: {"type": kind} for kind in (str, float, int)}
    kinds |= {"Domain": kinds["str"], "bool": {"action": argparse.BooleanOptionalAction}}
    for field in fields(Recipe):
        name = field.name.replace("_", "-")
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, **kinds[str(field.type)])


def chosen(args: argparse.Namespace) -> Recipe:
    """The recipe chosen by the arguments of `add_fields`."""
    own: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(Recipe) if hasattr(args, f.name)}
    return replace(RECIPES[args.recipe], **own)
