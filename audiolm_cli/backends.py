"""Models of all kinds, by name: which kind a name means, what that kind can do, and loading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from audiolm_cli.bundles import catalogue, hub
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.public import files

if TYPE_CHECKING:
    from audiolm_cli.backend import Backend

MIMI = "kyutai/mimi"  # another folder or repository of the same shape, if the environment's AUDIOLM_MIMI names one
TOKENIZERS = {"soda-research/": "soda-research/marin-mimi-bpe-8cb-16k-tokenizer"}  # of what has none beside it
SERVED = ("continue", "generate")  # by a language model over Mimi's codes


def load(
    name: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False, say: hub.Say | None = None
) -> Backend:
    """The model of that name (embedded in the program), in that folder, or of that id on a hub, whatever its kind.

    Raises ModelError when there is none, it is damaged or of an unknown kind, UsageError for a device or dtype that
    cannot be had. `say` is told of a large download.
    """
    if catalogue.kind(name, offline) == "stages":
        from audiolm_cli.bundles import bundle

        if catalogue.local(name) is None and hub.is_id(name):
            hub.pull(name, offline, say)
        return bundle.load(name, device=device, dtype=dtype, offline=offline)
    from audiolm_cli.mimi import run  # noqa: F401  (which tells the pipeline how this kind runs)
    from audiolm_cli.mimi.model import MimiBackend

    called = name.partition("@")[0] if catalogue.local(name) is None else Path(name).resolve().name
    return MimiBackend(*_folders(name, offline, say), name=called, device=device, dtype=dtype)


def require(command: str, name: str, offline: bool = False) -> None:
    """Raises UsageError for a command that the kind of a model cannot serve, before any of it is loaded."""
    if command not in SERVED and catalogue.kind(name, offline) != "stages":
        raise refusal(command, name)


def refusal(command: str, name: str) -> UsageError:
    """Says that a language model over Mimi's codes cannot serve a command."""
    return UsageError(
        f"{command}: {name} is one language model over Mimi's codes, which can {' and '.join(SERVED)}; "
        f"{command} needs a bundle of three stages"
    )


def verify(name: str) -> Path:
    """Checks every file of a model that is here against its digest, and that its parts belong together; returns its
    folder. Raises ModelError."""
    from audiolm_cli.bundles.folder import check_sums

    folder = catalogue.find(name, offline=True)
    if files.kind(folder) == "stages":
        from audiolm_cli.bundles.bundle import check_parts

        check_sums(folder)
        check_parts(folder)
        return folder
    from audiolm_cli.mimi import model

    for part in (folders := _folders(name, True, None)):
        if part.parent.name == "snapshots" and (wrong := files.damaged(part)):
            raise ModelError(f"{part}: {', '.join(wrong)}: not what the hub has")
    model.check(*folders)
    return folder


def _folders(name: str, offline: bool, say: hub.Say | None) -> tuple[Path, Path, Path]:
    """Of the weights, of the vocabulary, and of Mimi."""
    folder = tokenizer = catalogue.find(name, offline, say)
    if not (folder / files.TOKENIZER).is_file():
        owner = next((owner for owner in TOKENIZERS if name.startswith(owner)), None)
        if owner is None:
            raise ModelError(f"{folder}: has no {files.TOKENIZER}")
        tokenizer = hub.pull_files(TOKENIZERS[owner], [files.TOKENIZER], offline)
    mimi = os.environ.get("AUDIOLM_MIMI", MIMI)
    beside = catalogue.local(mimi)
    return folder, tokenizer, beside or hub.pull_files(mimi, ["config.json", files.WEIGHTS], offline, say)
