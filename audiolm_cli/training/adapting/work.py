"""The working folder beside a new bundle. It holds the results of finished steps, so the same command resumes.

Its layout is that of a training run (parts/, audio/, tokens/, a folder with checkpoint and log for each stage), plus
state.json. It is removed once the bundle is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audiolm_cli.bundles.bundle import whole
from audiolm_cli.bundles.folder import SHA256SUMS, read_config
from audiolm_cli.errors import ExistsError, OutputError, display

SUFFIX = ".training"  # behind the bundle's name
SAVE_SECONDS = 10.0


class Work(contextlib.AbstractContextManager["Work"]):
    """The locked working folder, and the state of the training that `asked` describes.

    Raises OutputError if another training was begun there (`force` removes it), or is running there now.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any], force: bool):
        self.folder, self.begun = out.with_name(out.name + SUFFIX), time.monotonic()
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{display(self.folder)}: another training is at work there") from None
        except OSError as error:
            raise OutputError(f"{display(self.folder)}: cannot be written: {error.strerror}") from None
        wanted = json.loads(json.dumps(asked))
        self.state: dict[str, Any] = self._read()
        self.fresh = not self.state
        if self.state and self.state["asked"] != wanted:
            if not force:
                differs = ", ".join(key for key in wanted if self.state["asked"].get(key) != wanted[key])
                raise OutputError(
                    f"{display(self.folder)}: a training with other {differs} was begun there; give the same again to "
                    "resume it, or --force to start over"
                )
            self.fresh = True
        if self.fresh:
            self._clear()
            self.state = {"asked": wanted, "seconds": 0.0, "done": {}}
        self._before = self._saved = float(self.state["seconds"])

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all runs."""
        return self._before + time.monotonic() - self.begun

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A step's result as JSON; runs the step unless it is finished."""
        if name not in self.state["done"]:
            begun = time.monotonic()
            self.state["done"][name] = {"gave": make(), "seconds": time.monotonic() - begun}
            self.save()
            self.state = self._read()
        return self.state["done"][name]["gave"]

    def took(self, name: str) -> float:
        """Seconds that a step took."""
        return float(self.state["done"][name]["seconds"])

    def tick(self) -> None:
        """Saves the time from time to time."""
        if self.seconds - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.state["seconds"] = self._saved = self.seconds
        with whole(self.folder / "state.json") as part:
            part.write_text(json.dumps(self.state))

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):  # none yet, or damaged
            return {}
        return found

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def check_place(out: Path, source: Path, force: bool) -> None:
    """Raises OutputError if a bundle cannot be written to `out`: the parent folder is missing, or `out` exists. `force`
    allows replacing a bundle other than the source that holds no foreign files."""
    name, parent = display(out), out.parent
    if not parent.is_dir():
        raise OutputError(f"{name}: there is no folder {display(parent)}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: the folder {display(parent)} cannot be written to")
    if not os.path.lexists(out):
        return
    if not force:
        raise ExistsError(f"{name}: exists already; use --force to replace it")
    if out.is_symlink() or not (out / "config.json").is_file() or not (out / "SHA256SUMS").is_file():
        raise OutputError(f"{name}: is not a bundle, and is not replaced")
    if out.samefile(source):
        raise OutputError(f"{name}: is the bundle that training starts from")
    read_config(out)
    sums = (out / "SHA256SUMS").read_text(errors="replace")
    own = {line.split("  ")[1] for line in sums.splitlines()} if SHA256SUMS.fullmatch(sums) else set()
    if foreign := sorted(file.name for file in out.iterdir() if file.name not in {*own, "SHA256SUMS"}):
        raise OutputError(f"{name}: has {display(foreign[0])}, which is not the bundle's, and is not replaced")


def put(made: Path, out: Path, aside: Path) -> None:
    """Moves a finished bundle to its place; moves what was there aside first."""
    if out.exists():
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
    made.rename(out)
