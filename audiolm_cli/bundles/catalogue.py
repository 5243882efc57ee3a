"""The bundles that there are, in the program, in the hub's cache and in folders: found by name, listed, described.

Needs no torch, as all that `audiolm models` calls.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from audiolm_cli.bundles import hub
from audiolm_cli.bundles.folder import EMBEDDED
from audiolm_cli.errors import ModelError
from audiolm_cli.public.files import MAX_CONFIG_BYTES


def find(name: str, offline: bool = False) -> Path:
    """The folder of a bundle: a path to one, the name of an embedded one, or `org/repo@revision` of a hub, which is
    fetched if it is not here."""
    candidates = [Path(name), *(folder / name for folder in EMBEDDED)]
    if "/" in name or name in ("", ".", ".."):
        candidates = candidates[:1]
    for folder in candidates:
        if os.path.isfile(folder / "config.json"):  # whatever the name is
            return folder
    if hub.is_id(name) and not Path(name).exists():
        return hub.pull(name, offline)
    raise ModelError(f"{name}: no such bundle; embedded here: {', '.join(embedded()) or 'none'}")


def embedded() -> list[str]:
    """Names of the bundles that came with the program."""
    return sorted({config.parent.name for folder in EMBEDDED for config in folder.glob("*/config.json")})


def listed() -> list[dict[str, Any]]:
    """A record of each bundle that is here: name, place, path, bytes, licence, figures."""
    found = [(name, "embedded", find(name)) for name in embedded()]
    found += [(name, "cached", folder) for name, folder in hub.listed().items()]
    return [record(name, place, folder) for name, place, folder in found]


def record(name: str, place: str, folder: Path) -> dict[str, Any]:
    """What one line of the list says."""
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
    """The `key: value` lines between two lines of --- that a model card begins with, as on the hub."""
    match = re.match(r"---\n(.*?)\n---\n", card(folder, "README.md"), re.DOTALL)
    pairs = (line.partition(":") for line in match[1].splitlines()) if match else []
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}


def shown(name: str, folder: Path) -> dict[str, Any]:
    """All that is known of one bundle: its record, config, card and licence."""
    place = "embedded" if folder.parent in EMBEDDED else "cached" if hub.is_id(name) else "folder"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        **record(name, place, folder),
        "config": config,
        "card": card(folder, "README.md"),
        "licence_text": card(folder, "LICENSE"),
    }


def card(folder: Path, file: str) -> str:
    """A text that came with a bundle, without what could steer a terminal; empty where there is none."""
    try:
        text = (folder / file).read_text(encoding="utf-8", errors="replace")[:MAX_CONFIG_BYTES]
    except OSError:
        return ""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
