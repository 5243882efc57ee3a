"""A checkpoint's files: which there are, what kind of model they hold, and whether they are complete."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from audiolm_cli.errors import ModelError, display

Kind = Literal["stages", "mimi"]  # a bundle of this program; one language model over Mimi's codes
DECODERS = ("llama", "qwen3")
MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 1 << 26  # Llama 3's has 9 MB
WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
SHARD = re.compile(r"[\w-][\w.-]{0,127}\.safetensors")
OUTLINE = ["config.json", TOKENIZER, INDEX]  # downloaded first: they tell which other files are needed
ALL = [*OUTLINE, WEIGHTS, "model-*.safetensors"]  # never .bin, .pt or code


def read_text(file: Path, most: int = MAX_CONFIG_BYTES) -> str:
    """A text file of at most `most` bytes; raises ModelError."""
    try:
        if file.stat().st_size > most:
            raise ModelError(f"{file}: larger than {most} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not readable ({error})") from error


def read_json(file: Path, most: int = MAX_CONFIG_BYTES) -> Any:
    """The contents of a JSON file of at most `most` bytes; raises ModelError."""
    try:
        return json.loads(read_text(file, most))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from error


def kind(folder: Path) -> Kind:
    """The kind of a folder's model, by its config.json; raises ModelError for an unknown one."""
    value = read_json(folder / "config.json")
    model_type = value.get("model_type") if isinstance(value, dict) else None
    if model_type is None:  # other faults in a bundle's config are reported on reading it
        return "stages"
    if model_type not in DECODERS:
        named = display(str(model_type)[:64])
        raise ModelError(
            f"{folder / 'config.json'}: model_type {named} is none that this program knows: a bundle of its own, or "
            f"{' or '.join(DECODERS)} over Mimi's codes"
        )
    return "mimi"


def shards(folder: Path) -> list[str]:
    """A checkpoint's safetensors files, in order; raises ModelError if it does not say which."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file() and any(folder.glob("*.bin")):
            raise ModelError(f"{folder}: has its weights in a format that can run code; only safetensors are read")
        return [WEIGHTS]
    index = read_json(folder / INDEX, MAX_TOKENIZER_BYTES)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{folder / INDEX}: has no weight_map")
    names = sorted({str(name) for name in found.values()})
    for name in names:
        if not SHARD.fullmatch(name):
            raise ModelError(f"{folder / INDEX}: {display(name[:64])} is no name of a safetensors file beside it")
    return names


def needed(folder: Path) -> list[str]:
    """The files that a model needs: its config, its weights and their index, its vocabulary if it has one; raises
    ModelError."""
    return ["config.json", *(name for name in (TOKENIZER, INDEX) if (folder / name).is_file()), *shards(folder)]


def is_complete(folder: Path) -> bool:
    """Whether a model is complete."""
    try:
        return all((folder / name).is_file() for name in needed(folder))
    except ModelError:
        return False


def lacking(folder: Path) -> str:
    """The first needed file that is missing, or the error that prevents finding out."""
    try:
        return next((name for name in needed(folder) if not (folder / name).is_file()), "nothing")
    except ModelError as error:
        return str(error)


def digest(file: Path) -> str:
    """Identifies a file's contents: in a hub's cache, by the digest from the hub under which they are stored; other
    files by their SHA-256."""
    kept = file.resolve().name
    return kept if file.is_symlink() and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", kept) else _sum(file, "sha256")


def damaged(folder: Path) -> list[str]:
    """Files of a snapshot in a hub's cache whose contents do not match the digests that name them: SHA-256, or git's
    for small files."""
    return [name for name in needed(folder) if not (folder / name).is_file() or not _as_kept(folder / name)]


def _as_kept(file: Path) -> bool:
    kept = digest(file)
    return kept == (_sum(file, "sha1", git=True) if len(kept) == 40 else _sum(file, "sha256"))


def _sum(file: Path, algorithm: str, git: bool = False) -> str:
    found = hashlib.new(algorithm)
    if git:
        found.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
