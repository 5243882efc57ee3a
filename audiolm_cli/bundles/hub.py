"""Models from a hub: `org/repo` or `org/repo@revision`, kept in huggingface_hub's own cache.

A complete model in the cache is used without any network request. Only needed files are downloaded, first those that
tell which these are; never code, nor weights in a format that can contain code. An interrupted file resumes where it
broke off, for some tries; finished files stay for the next call. Bundles are checked against SHA256SUMS before use: a
file that does not match is deleted.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from audiolm_cli.bundles.folder import PARTS, check_once, damaged, read_config
from audiolm_cli.errors import ModelError
from audiolm_cli.public import files

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w][\w./-]{0,127})?")
CARD = ["README.md", "LICENSE", "LICENSE.txt", "*.png", "*.ogg"]  # of a bundle: for people, with pictures and examples
BUNDLE = [*(f"{part}.safetensors" for part in PARTS), *CARD]
OUTLINE = ["SHA256SUMS", *CARD[:3], *files.OUTLINE]
LARGE = 100e6  # bytes: from here on, the size is announced

Say = Callable[[str], None]


def is_id(name: str) -> bool:
    """Whether a name could be a repository id on a hub."""
    return ID.fullmatch(name) is not None


def cached(name: str, *patterns: Sequence[str]) -> Path | None:
    """The cached folder of a repository that has, as far as is known, all files matching the first list of patterns, or
    the second, and so on; by default those of a model of either kind. No network requests."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for names in patterns or ([*OUTLINE, *BUNDLE], [*OUTLINE, *files.ALL]):
        try:
            return _snapshot(name, names, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            continue
    return None


def _snapshot(name: str, patterns: Sequence[str], local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = snapshot_download(
        repository,
        revision=revision or None,
        local_files_only=local_files_only,
        allow_patterns=list(patterns),
    )
    return Path(folder)


def is_complete(folder: Path) -> bool:
    """Whether a model is complete: for a bundle, all files that SHA256SUMS lists are there."""
    try:
        stages = files.kind(folder) == "stages"
        return not damaged(folder, contents=False) if stages else files.is_complete(folder)
    except ModelError:
        return False


def outline(name: str, offline: bool = False) -> Path:
    """The folder of a model with at least its config.json, downloaded if needed; raises ModelError."""
    folder = cached(name, OUTLINE)
    if folder and (folder / "config.json").is_file():
        return folder
    return _fetched(name, OUTLINE, offline)


def pull(name: str, offline: bool = False, say: Say | None = None) -> Path:
    """The folder of a model, downloaded if needed and checked; raises ModelError. `say` announces a large download, and
    a terminal gets progress bars; without `say` nothing is printed."""
    folder = cached(name)
    if folder and is_complete(folder):
        return folder
    folder = _fetched(name, OUTLINE, offline)
    stages = files.kind(folder) == "stages"
    folder = _fetched(name, [*OUTLINE, *BUNDLE] if stages else [*OUTLINE, *files.ALL], offline, say)
    if stages:
        _check(folder)
    elif not is_complete(folder):
        raise ModelError(f"{name}: the repository lacks {files.lacking(folder)}")
    return folder


def pull_files(name: str, patterns: Sequence[str], offline: bool = False, say: Say | None = None) -> Path:
    """The folder with some files of a repository that are not a model by themselves, downloaded if needed."""
    folder = cached(name, patterns)
    if folder and all(any(folder.glob(pattern)) for pattern in patterns):
        return folder
    return _fetched(name, patterns, offline, say)


def _fetched(name: str, patterns: Sequence[str], offline: bool, say: Say | None = None) -> Path:
    """Downloads all files of a repository that match the patterns; returns its folder. Raises ModelError."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    if offline or constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name}: not here, and --offline or HF_HUB_OFFLINE forbids to fetch it")
    if say is None or sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        if say and (size := _size(name, patterns)) > LARGE:
            say(f"{name}: {size / 1e9:.1f} GB to fetch")
        return _snapshot(name, patterns)
    except huggingface_hub.errors.GatedRepoError:
        raise ModelError(
            f"{name}: the hub shows it only to those who accepted its terms, on its page there: then `hf auth login`"
        ) from None
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise ModelError(f"{name}: the hub has no such repository, or does not show it to you") from None
    except huggingface_hub.errors.RevisionNotFoundError:
        raise ModelError(f"{name}: the repository has no such revision") from None
    except Exception as error:  # of the client, its HTTP library, or the system
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"{name}: could not be fetched ({why}); what has come stays, try again") from error


def _size(name: str, patterns: Sequence[str]) -> int:
    """Bytes of a repository's matching files that are not cached."""
    from huggingface_hub import HfApi

    repository, _, revision = name.partition("@")
    folder, total = cached(name, OUTLINE), 0
    for entry in HfApi().list_repo_tree(repository, revision=revision or None):
        here = folder is not None and (folder / entry.path).exists()
        if not here and any(fnmatch.fnmatch(entry.path, pattern) for pattern in patterns):
            total += getattr(entry, "size", 0) or 0
    return total


def _check(folder: Path) -> None:
    try:
        check_once(folder)
        read_config(folder)
    except ModelError:
        for file in damaged(folder):  # so that the next try downloads it again
            path = folder / file
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise


def listed() -> dict[str, Path]:
    """Models in the cache: `org/repo@revision` -> folder. huggingface_hub's own scan takes half a second."""
    from huggingface_hub import constants

    found = {}
    for config in Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots/*/config.json"):
        snapshot, repository = config.parent, config.parents[2]
        if is_complete(snapshot):
            names = [r.relative_to(repository / "refs").as_posix() for r in repository.glob("refs/**/*")
                     if r.is_file() and r.read_text() == snapshot.name]  # fmt: skip
            owner_and_name = repository.name.removeprefix("models--").replace("--", "/")
            found[f"{owner_and_name}@{min(names, default=snapshot.name)}"] = snapshot
    return dict(sorted(found.items()))
