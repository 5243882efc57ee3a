"""The available bundles, in the program, the hub's cache and folders: found by name, listed, described.

Needs no torch, like everything that `audiolm models` calls.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from audiolm_cli.bundles import hub
from audiolm_cli.bundles.folder import EMBEDDED, read_config
from audiolm_cli.errors import ModelError
from audiolm_cli.public import config as decoder
from audiolm_cli.public import files


def find(name: str, offline: bool = False, say: hub.Say | None = None) -> Path:
    """A model's folder: a path to one, the name of an embedded bundle, or `org/repo@revision` on a hub, which is
    downloaded unless it is cached."""
    if folder := local(name):
        return folder
    if is_remote(name):
        return hub.pull(name, offline, say)
    raise ModelError(f"{name}: no such bundle; embedded here: {', '.join(embedded()) or 'none'}")


def local(name: str) -> Path | None:
    """The folder of a model that is not from a hub, or None."""
    candidates = [Path(name), *(folder / name for folder in EMBEDDED)]
    if "/" in name or name in ("", ".", ".."):
        candidates = candidates[:1]
    return next((folder for folder in candidates if os.path.isfile(folder / "config.json")), None)  # whatever the name


def is_remote(name: str) -> bool:
    """Whether a name means a repository on a hub: it looks like one, and nothing here has that path."""
    return local(name) is None and hub.is_id(name) and not Path(name).exists()


def kind(name: str, offline: bool = False) -> files.Kind:
    """A model's kind, by its config.json; if a hub's model is not cached, this fetches only what tells its kind. Raises
    ModelError."""
    folder = hub.outline(name, offline) if is_remote(name) else local(name)
    return files.kind(folder) if folder else "stages"  # loading it reports that there is none


def embedded() -> list[str]:
    """Names of the bundles that come with the program."""
    return sorted({config.parent.name for folder in EMBEDDED for config in folder.glob("*/config.json")})


def listed() -> list[dict[str, Any]]:
    """A record of each bundle that is available locally: name, place, path, bytes, licence, figures."""
    found = [(name, "embedded", find(name)) for name in embedded()]
    found += [(name, "cached", folder) for name, folder in hub.listed().items()]
    return [record(name, place, folder) for name, place, folder in found]


def record(name: str, place: str, folder: Path) -> dict[str, Any]:
    """The record behind one line of the list."""
    card = front_matter(folder)
    return {
        "name": name,
        "place": place,
        "path": str(folder),
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "licence": card.get("license", "see LICENSE" if (folder / "LICENSE").is_file() else "unknown"),
        "figures": card.get("figures", ""),
    }


def front_matter(folder: Path) -> dict[str, str]:
    """The `key: value` lines between two --- lines at the top of a model card, as on the hub."""
    match = re.match(r"---\n(.*?)\n---\n", card(folder, "README.md"), re.DOTALL)
    pairs = (line.partition(":") for line in match[1].splitlines()) if match else []
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}


def shown(name: str, folder: Path) -> dict[str, Any]:
    """Everything about one model: its record, config, card and licence, and lines `about` its sizes."""
    place = "embedded" if folder.parent in EMBEDDED else "cached" if hub.is_id(name) else "folder"
    return {
        **record(name, place, folder),
        "config": files.read_json(folder / "config.json"),
        "card": card(folder, "README.md"),
        "licence_text": card(folder, "LICENSE"),
        "about": _of_stages(folder) if files.kind(folder) == "stages" else _of_codes(folder),
    }


def _of_stages(folder: Path) -> list[str]:
    config = read_config(folder)
    tokens = config.tokens
    return [
        f"{tokens.sample_rate} Hz, {tokens.semantic_rate:g} semantic tokens/s of {tokens.semantic_vocabulary}, "
        f"{tokens.quantizers} codes of {tokens.codebook_size} for every {tokens.samples_per_frame} samples",
        *(
            f"{name}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in vars(config.sampling).items()
        ),
        f"max_pause: {config.pause_limit:g}, by {len(config.pause_tokens) or 'no'} pause tokens",
        *(
            f"{part if part == 'recipe' else f'{part} trained'}: {', '.join(f'{k} {v}' for k, v in how.items())}"
            for part, how in config.trained.items()
        ),
    ]


def _of_codes(folder: Path) -> list[str]:
    from audiolm_cli.public.layout import CODEBOOK_SIZE, read_layout  # imports numpy, which the help texts do without

    config = decoder.read_config(folder)
    lines = [
        f"one language model over Mimi's codes: {config.model_type}, {config.parameters / 1e6:.0f} M weights in "
        f"{config.layers} layers of width {config.width}"
    ]
    if (folder / files.TOKENIZER).is_file():
        layout = read_layout(folder, config)
        family = layout.family
        lines.append(
            f"{family.name}: {layout.quantizers} codes of {CODEBOOK_SIZE} a frame, trained on {family.context} tokens; "
            f"temperature {family.temperature}, top-k {family.top_k}, top-p {family.top_p}"
        )
    return lines


def card(folder: Path, file: str) -> str:
    """A text file of a bundle, without terminal control characters; empty if there is none."""
    try:
        text = (folder / file).read_text(encoding="utf-8", errors="replace")[: files.MAX_CONFIG_BYTES]
    except OSError:
        return ""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
