"""README.md's help texts are what the program prints; `python -m tests.test_readme` puts them there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import soundfile

from tests.conftest import ROOT, tone

README = ROOT / "README.md"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
RECIPES = re.compile(r"(?<=```sh\n).*?(?=```)", re.DOTALL)
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.findall(README.read_text(encoding="utf-8")))
def test_recipes_run_as_they_stand(recipe, tiny_bundle, tmp_path):
    if missing := [
        tool for tool in ("sox", "jq", "xargs", "audiolm") if tool in recipe and not shutil.which(tool, path=PATH)
    ]:
        pytest.skip(f"not installed: {missing[0]}")
    (tmp_path / "talks").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / "talks" / f"{name}.wav", tone(0.5), 16000)
    environment = {**os.environ, "PATH": PATH, "AUDIOLM_MODEL": str(tiny_bundle)}
    for _ in range(2 if "--skip-existing" in recipe else 1):
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", recipe], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    made = [file for file in tmp_path.rglob("*.wav") if file.parent.name != "talks"]
    assert made
    for file in made:
        assert soundfile.info(file).duration > 0.5


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
