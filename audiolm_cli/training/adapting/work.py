"""The folder beside a bundle in which it is made: what is finished stays, so that the same command goes on.

Laid out as a training's: parts/, audio/, tokens/, a folder with checkpoint and log for each stage; and state.json. It
is removed when the bundle is there.
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
    """The folder, which nobody else uses meanwhile, and what is known there of a training that `asked` describes.

    Raises OutputError where another one has been begun, unless `force`, which removes that, or is at work.
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
                    "go on, or --force to begin anew"
                )
            self.fresh = True
        if self.fresh:
            self._clear()
            self.state = {"asked": wanted, "seconds": 0.0, "done": {}}
        self._before = self._saved = float(self.state["seconds"])

    @property
    def seconds(self) -> float:
        """That the training has taken until now, in all its runs."""
        return self._before + time.monotonic() - self.begun

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What a step gives, as JSON has it; it is done only if it was not finished before."""
        if name not in self.state["done"]:
            begun = time.monotonic()
            self.state["done"][name] = {"gave": make(), "seconds": time.monotonic() - begun}
            self.save()
            self.state = self._read()
        return self.state["done"][name]["gave"]

    def took(self, name: str) -> float:
        """Seconds of a step."""
        return float(self.state["done"][name]["seconds"])

    def tick(self) -> None:
        """Notes the time, now and then."""
        if self.seconds - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.state["seconds"] = self._saved = self.seconds
        with whole(self.folder / "state.json") as part:
            part.write_text(json.dumps(self.state))

    def remove(self) -> None:
        """Takes the folder away."""
        shutil.rmtree(self.folder)

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):  # none yet
            return {}
        return found

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def check_place(out: Path, source: Path, force: bool) -> None:
    """Raises OutputError where a bundle cannot be written: in a folder that is not there, or in place of what is; with
    `force`, in place of anything but another bundle than the one it comes from, and nothing beside that."""
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
        raise OutputError(f"{name}: is no bundle, and is not replaced")
    if out.samefile(source):
        raise OutputError(f"{name}: is the bundle that training begins with")
    read_config(out)
    sums = (out / "SHA256SUMS").read_text(errors="replace")
    own = {line.split("  ")[1] for line in sums.splitlines()} if SHA256SUMS.fullmatch(sums) else set()
    if foreign := sorted(file.name for file in out.iterdir() if file.name not in {*own, "SHA256SUMS"}):
        raise OutputError(f"{name}: has {display(foreign[0])}, which is not the bundle's, and is not replaced")


def put(made: Path, out: Path, aside: Path) -> None:
    """Moves a finished bundle to its place; what was there goes aside first."""
    if out.exists():
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
    made.rename(out)
