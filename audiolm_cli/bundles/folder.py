"""A bundle's folder: verifies files against SHA256SUMS and reads the config.

Needs no torch, so that commands which only list bundles start at once. Any fault is a ModelError of one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from audiolm_cli.config import FORMAT_VERSION, BundleConfig
from audiolm_cli.errors import ModelError
from audiolm_cli.fields import from_json
from audiolm_cli.public.files import read_json, read_text

PARTS = ("codec", "tokenizer", "semantic", "coarse", "fine", "detector")
SHA256SUMS = re.compile(r"([0-9a-f]{64}  [\w.-]{1,64}\n)+")
PACKAGE = Path(__file__).parent.parent
EMBEDDED = (PACKAGE / "weights", PACKAGE.parent / "weights")  # in a wheel; in a checkout


def damaged(folder: Path, contents: bool = True) -> list[str]:
    """Names of files that are missing or (with `contents`) do not match SHA256SUMS. Raises ModelError."""
    listed = SHA256SUMS.fullmatch(read_text(folder / "SHA256SUMS"))
    if not listed:
        raise ModelError(f"{folder / 'SHA256SUMS'}: not a list of SHA-256 sums")
    sums = {name: digest for digest, name in (line.split("  ") for line in listed[0].splitlines())}
    present = [f"{part}.safetensors" for part in PARTS if (folder / f"{part}.safetensors").exists()]
    wrong = [name for name in ("config.json", *present) if name not in sums]
    for name, digest in sums.items():
        file = folder / name
        if not file.is_file() or (contents and sha256(file) != digest):
            wrong.append(name)
    return wrong


def check_sums(folder: Path) -> None:
    """Raises ModelError if a file does not match SHA256SUMS."""
    if wrong := damaged(folder):
        raise ModelError(f"{folder}: {', '.join(wrong)}: missing, or not what SHA256SUMS says")


def check_once(folder: Path) -> None:
    """`check_sums` on first load and after any file has changed; embedded bundles are exempt, as checked on install."""
    if folder.parent in EMBEDDED:
        return
    state = [str(folder.resolve()), read_text(folder / "SHA256SUMS")]
    for file in sorted(folder.iterdir()):
        status = file.stat()
        state.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiolm" / "checked"
    mark = cache / hashlib.sha256("\n".join(state).encode()).hexdigest()
    if not mark.exists():
        check_sums(folder)
        with contextlib.suppress(OSError):  # then the next load checks again
            cache.mkdir(parents=True, exist_ok=True)
            mark.touch()


def sha256(file: Path) -> str:
    """A file's SHA-256 in hexadecimal, as sha256sum prints it."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_config(folder: Path) -> BundleConfig:
    """The checked config.json of a bundle; raises ModelError."""
    file = folder / "config.json"
    value = read_json(file)
    version = value.get("format_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:  # whatever else it says
        raise ModelError(
            f"{file}: format_version {version}; this program knows up to {FORMAT_VERSION}, get a newer one"
        )
    config: BundleConfig = from_json(BundleConfig, value)
    return config
