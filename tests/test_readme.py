"""README.md's help texts are what the program prints; `python -m tests.test_readme` puts them there."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.conftest import ROOT

README = ROOT / "README.md"
HELP = re.compile(r"(?<=```console\n)\$ (audiolm[^\n]*--help)\n.*?(?=```)", re.DOTALL)


def with_help(text: str) -> str:
    def printed(match: re.Match[str]) -> str:
        command = [sys.executable, "-m", "audiolm_cli", *shlex.split(match[1])[1:]]
        environment = {**os.environ, "COLUMNS": "80"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return f"$ {match[1]}\n{result.stdout}"

    return HELP.sub(printed, text)


@pytest.mark.skipif(
    f"typer=={version('typer')}" not in (ROOT / "constraints.txt").read_text(encoding="utf-8"),
    reason="another version of Typer words its help differently",
)
def test_help_texts_are_current():
    text = README.read_text(encoding="utf-8")
    assert len(HELP.findall(text)) >= 3
    assert text == with_help(text), "README.md is out of date: python -m tests.test_readme"


def test_what_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", README.read_text(encoding="utf-8"), re.M):
        assert f"\n{target}:" in makefile, target


if __name__ == "__main__":
    README.write_text(with_help(README.read_text(encoding="utf-8")), encoding="utf-8")
