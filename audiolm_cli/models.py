"""Models of all kinds, by name: determines the kind, checks what it can serve, and loads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from audiolm_cli.bundles import catalogue, hub
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.public import files

if TYPE_CHECKING:
    from audiolm_cli.backend import Backend

MIMI = "kyutai/mimi"  # unless the environment's AUDIOLM_MIMI names another folder or repository of the same structure
TOKENIZERS = {"soda-research/": "soda-research/marin-mimi-bpe-8cb-16k-tokenizer"}  # for models without one of their own
SERVED = ("continue", "generate")  # commands of a language model over Mimi's codes


def load(
    name: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False, say: hub.Say | None = None
) -> Backend:
    """Loads a model of any kind by its name (embedded in the program), folder or id on a hub.

    Raises ModelError if there is none or it is damaged or of an unknown kind, UsageError for an unavailable device or
    dtype. `say` announces a large download.
    """
    if catalogue.kind(name, offline) == "stages":
        from audiolm_cli.bundles import bundle

        if catalogue.is_remote(name):
            hub.pull(name, offline, say)
        return bundle.load(name, device=device, dtype=dtype, offline=offline)
    from audiolm_cli.mimi import run  # noqa: F401  (registers this kind's run)
    from audiolm_cli.mimi.model import MimiBackend

    called = name.partition("@")[0] if catalogue.local(name) is None else Path(name).resolve().name
    return MimiBackend(*_folders(name, offline, say), name=called, device=device, dtype=dtype)


def require(command: str, name: str, offline: bool = False) -> None:
    """Raises UsageError for a command that a model's kind cannot serve, before any of it is loaded."""
    if command not in SERVED and catalogue.kind(name, offline) != "stages":
        raise refusal(command, name)


def refusal(command: str, name: str) -> UsageError:
    """The error that a language model over Mimi's codes cannot serve a command."""
    return UsageError(
        f"{command}: {name} is one language model over Mimi's codes, which can {' and '.join(SERVED)}; "
        f"{command} needs a bundle of three stages"
    )


def verify(name: str) -> Path:
    """Checks every file of a locally available model against its digest, and that its parts fit together; returns its
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
    """The folders of the weights, of the vocabulary, and of Mimi."""
    folder = tokenizer = catalogue.find(name, offline, say)
    if not (folder / files.TOKENIZER).is_file():
        owner = next((owner for owner in TOKENIZERS if name.startswith(owner)), None)
        if owner is None:
            raise ModelError(f"{folder}: has no {files.TOKENIZER}")
        tokenizer = hub.pull_files(TOKENIZERS[owner], [files.TOKENIZER], offline)
    mimi = os.environ.get("AUDIOLM_MIMI", MIMI)
    beside = catalogue.local(mimi)
    return folder, tokenizer, beside or hub.pull_files(mimi, ["config.json", files.WEIGHTS], offline, say)
