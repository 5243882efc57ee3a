"""What shells complete: names of bundles and devices, asked as the shells ask, and answered without torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audiolm_cli.command_line.help import complete_device
from tests.helpers import ROOT

CODE = """
import sys
from audiolm_cli.command_line.cli import main
sys.modules["torch"] = None  # whoever imports it fails
sys.exit(main())
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub's cache with one bundle in it, named v1 and whole, and one that is not whole."""
    for name, files in {"one": ["config.json"], "broken": []}.items():
        repository = tmp_path / f"models--org--{name}"
        folder = repository / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
        for file in files:
            (folder / file).write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "v1").write_text("0" * 40)
    return tmp_path


def completed(cache: Path, line: str, shell: str = "bash") -> list[str]:
    """What a shell is offered for the last word of a line."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "_AUDIOLM_COMPLETE": f"complete_{shell}", **asked}
    command = [sys.executable, "-c", CODE]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("audiolm continue a.wav -m ", ["piano", "speech", "org/one@v1"]),
        ("audiolm detect --model sp", ["speech"]),
        ("audiolm models show o", ["org/one@v1"]),
        ("audiolm models verify piano s", ["speech"]),
        ("audiolm encode -m nothing-like-it", []),  # bash offers files itself
        ("audiolm generate --device c", complete_device("c")),
        ("audiolm generate --dtype b", ["bfloat16"]),
    ],
)
def test_bash_is_offered_what_there_is(cache: Path, line: str, offered: list[str]) -> None:
    assert completed(cache, line) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(cache: Path, shell: str) -> None:
    assert "speech" in "".join(completed(cache, "audiolm decode -m sp", shell))


def test_devices_are_valid_and_fit() -> None:
    assert complete_device("c")[:2] == ["cpu", "cuda"]
    assert complete_device("gpu") == []
    assert {"auto", "cpu", "cuda", "mps"} <= set(complete_device(""))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_bash_completes(cache: Path) -> None:
    folder = Path(sys.executable).parent
    script = """
        eval "$(_AUDIOLM_COMPLETE=source_bash audiolm)"
        COMP_WORDS=(audiolm models show p) COMP_CWORD=3
        $(complete -p audiolm | sed 's/.*-F \\([^ ]*\\).*/\\1/') audiolm
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HF_HUB_CACHE": str(cache)}
    command = ["bash", "--norc", "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["piano"]
