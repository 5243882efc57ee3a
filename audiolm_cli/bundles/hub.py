"""Bundles from a model hub: `org/repo` or `org/repo@revision`, kept in huggingface_hub's own cache.

What is in the cache and whole is used without asking the network. A file that breaks off goes on where it was, for some
tries; files that have come stay for the next call. All are checked against SHA256SUMS before they count: a file that
does not match is removed again.
"""

from __future__ import annotations

import re
from pathlib import Path

from audiolm_cli.bundles.folder import PARTS, check_once, damaged, read_config
from audiolm_cli.errors import ModelError

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w][\w./-]{0,127})?")
CARD = ["README.md", "LICENSE", "*.png", "*.ogg"]  # of a bundle: for people, with pictures and examples
FILES = ["config.json", "SHA256SUMS", *CARD, *(f"{part}.safetensors" for part in PARTS)]


def is_id(name: str) -> bool:
    """Whether a name could be that of a bundle on a hub."""
    return ID.fullmatch(name) is not None


def cached(name: str) -> Path | None:
    """The folder of a bundle that is here, whole or not; asks no network."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _snapshot(name: str, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = snapshot_download(
        repository, revision=revision or None, local_files_only=local_files_only, allow_patterns=FILES
    )
    return Path(folder)


def whole(folder: Path) -> bool:
    """Whether all that SHA256SUMS names is there."""
    try:
        return not damaged(folder, contents=False)
    except ModelError:
        return False


def pull(name: str, offline: bool = False, quiet: bool = False) -> Path:
    """The folder of a bundle, downloaded if need be and checked; raises ModelError."""
    folder = cached(name)
    if folder and whole(folder):
        return folder
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    if offline or constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name}: not here, and --offline or HF_HUB_OFFLINE forbids to fetch it")
    if quiet:
        disable_progress_bars()
    try:
        folder = _snapshot(name)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError):
        raise ModelError(f"{name}: the hub has no such repository, or does not show it to you") from None
    except huggingface_hub.errors.RevisionNotFoundError:
        raise ModelError(f"{name}: the repository has no such revision") from None
    except Exception as error:  # the client's own, its HTTP library's, the system's
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"{name}: could not be fetched ({why}); what has come stays, try again") from error
    try:
        check_once(folder)
        read_config(folder)
    except ModelError:
        for file in damaged(folder):  # so that it is fetched again
            path = folder / file
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise
    return folder


def listed() -> dict[str, Path]:
    """Bundles in the cache: `org/repo@revision` -> folder. The library would take half a second for it."""
    from huggingface_hub import constants

    found = {}
    for sums in Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots/*/SHA256SUMS"):
        snapshot, repository = sums.parent, sums.parents[2]
        if whole(snapshot):
            names = [r.relative_to(repository / "refs").as_posix() for r in repository.glob("refs/**/*")
                     if r.is_file() and r.read_text() == snapshot.name]  # fmt: skip
            owner_and_name = repository.name.removeprefix("models--").replace("--", "/")
            found[f"{owner_and_name}@{min(names, default=snapshot.name)}"] = snapshot
    return dict(sorted(found.items()))
