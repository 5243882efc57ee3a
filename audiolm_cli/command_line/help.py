"""Help and completion: options in groups, the bundles' defaults, examples, and values for shell completion.

None of it needs torch.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from audiolm_cli.config import Sampling
from audiolm_cli.errors import AudioLMError

GROUPS = {  # options by name; all others come first, under "Options"
    "Output": "output out_dir name num_samples format play continuation_only no_watermark plot force skip_existing "
    "json",
    "Clients": "host port token allow_host streams queue max_seconds max_megabytes",
    "Sampling": "seed temperature top_k top_p guidance prompt_guidance max_pause best_of",
    "Running": "device dtype threads batch_size ray offline fail_fast quiet debug help",
}
GROUP = {name: group for group, names in GROUPS.items() for name in names.split()}
OF_BUNDLES = {"prompt_seconds", "max_pause", *vars(Sampling())}  # options with a default from the bundle
COMMAND_LINES = {
    "continue": (
        "audiolm continue prompt.wav -o out.wav --duration 10 --seed 7",
        "audiolm continue talks/*.wav --out-dir out --name '{stem}.{index}.mp3' -n 2",
    ),
    "generate": (
        "audiolm generate --unconditional -o new.wav -n 4",
        "audiolm generate --unconditional -m piano -o piano.flac --duration 20",
    ),
    "resynth": (
        "audiolm resynth talk.wav --speaker reference.wav -o same-words.wav",
        "audiolm resynth talks/*.wav --out-dir other-voices --seed 3",
    ),
    "encode": (
        "audiolm encode speech.flac -o speech.safetensors",
        "audiolm encode talks/*.wav --out-dir tokens --skip-existing",
    ),
    "decode": (
        "audiolm decode speech.safetensors -o back.wav",
        "audiolm decode tokens/*.safetensors --out-dir coarse --quantizers 4",
    ),
    "detect": (
        "audiolm detect out.wav",
        "audiolm detect downloads/*.mp3 --json",
    ),
    "score": (
        "audiolm score talk.wav",
        "audiolm score word.wav pseudo-word.wav --stage semantic",
    ),
    "train": (
        "audiolm train recordings/ -o my-voice",
        "audiolm train talk.m4a -o my-voice --semantic --decoder --minutes 60",
    ),
    "serve": (
        "audiolm serve --port 8000",
        "audiolm serve -m piano --port 8001 --streams 2 --max-seconds 60",
    ),
    "models list": (
        "audiolm models list",
        "audiolm models list --json",
    ),
    "models show": (
        "audiolm models show piano",
        "audiolm models show org/repo@v1 --offline",
    ),
    "models pull": (
        "audiolm models pull org/repo",
        "audiolm models pull org/repo@v1 --quiet",
    ),
    "models verify": (
        "audiolm models verify",
        "audiolm models verify speech org/repo@v1",
    ),
}
EXAMPLES = {
    name: "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)]) for name, lines in COMMAND_LINES.items()
}


class Command(TyperCommand):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        found: dict[str, list[Any]] = {"Arguments": [], "Options": [], **{group: [] for group in GROUPS}}
        for param in self.get_params(ctx):
            if param.name in OF_BUNDLES:
                param.show_default = bundle_defaults(str(param.name))  # type: ignore[attr-defined]
            if (record := param.get_help_record(ctx)) is not None:
                argument = param.param_type_name == "argument"
                found["Arguments" if argument else GROUP.get(str(param.name), "Options")].append(record)
        for group, records in found.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def bundle_defaults(name: str) -> str:
    """The embedded bundles' defaults for an option, as "piano 4; speech 3"."""
    from audiolm_cli.bundles import catalogue
    from audiolm_cli.bundles.folder import read_config

    having: dict[str, list[str]] = defaultdict(list)  # default -> bundles
    for bundle in catalogue.embedded():
        with contextlib.suppress(AudioLMError):  # a damaged bundle must not break the help
            config = read_config(catalogue.find(bundle))
            defaults = {**vars(config), **vars(config.sampling), "max_pause": config.pause_limit}
            value = defaults[name]
            numbers = value if isinstance(value, tuple) else (value,)
            alike = len(set(numbers)) == 1
            having[",".join(f"{number:g}" for number in (numbers[:1] if alike else numbers))].append(bundle)
    return "; ".join(f"{' and '.join(names)} {value}" for value, names in having.items()) or "the bundle's"


def complete_bundle(incomplete: str) -> list[str]:
    """The locally available bundles; if none matches, shells offer folders."""
    from audiolm_cli.bundles import catalogue, hub

    return [name for name in [*catalogue.embedded(), *hub.listed()] if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """The names of devices, with the numbers of the NVIDIA GPUs that the system has."""
    gpus = sorted(f"cuda:{device.name.removeprefix('nvidia')}" for device in Path("/dev").glob("nvidia[0-9]*"))
    return [name for name in ("auto", "cpu", "cuda", *gpus, "mps") if name.startswith(incomplete)]
