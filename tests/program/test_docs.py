"""What the documents say holds: help texts are what the program prints, commands parse, recipes run, links lead on.

`python -m tests.program.test_docs` puts the help texts into docs/commands.md.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import soundfile
import typer

from audiolm_cli import __version__
from audiolm_cli.command_line import cli
from audiolm_cli.command_line.help import bundle_defaults
from audiolm_cli.config import Sampling, preset
from tests.helpers import ROOT
from tests.helpers.bundles import write_bundle
from tests.helpers.sounds import tone
from tests.program.test_borders import ROOMS

README, COMMANDS, CHANGELOG = ROOT / "README.md", ROOT / "docs" / "commands.md", ROOT / "CHANGELOG.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
RECIPES = re.compile(r"(?<=```sh\n).*?(?=```)", re.DOTALL)
HELP = re.compile(r"(?<=```console\n)\$ (audiolm[^\n]*--help)\n.*?(?=```)", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def with_help(text: str) -> str:
    def printed(match: re.Match[str]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            assert cli.main(shlex.split(match[1])[1:]) == 0
        return f"$ {match[1]}\n{out.getvalue()}"

    return HELP.sub(printed, text)


def leaves(command: Any, name: str = "audiolm") -> Iterator[tuple[str, Any]]:
    """All commands by name, as `audiolm models list`."""
    if isinstance(command, typer.core.TyperGroup):
        for part, inner in command.commands.items():
            yield from leaves(inner, f"{name} {part}")
    else:
        yield name, command


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+) - ", read(CHANGELOG), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


ALL_COMMANDS = dict(leaves(typer.main.get_command(cli.app)))


@pytest.mark.skipif(
    f"typer=={version('typer')}" not in read(ROOT / "constraints.txt"),
    reason="another version of Typer words its help differently",
)
def test_help_texts_are_current():
    text = read(COMMANDS)
    assert text == with_help(text), "docs/commands.md is out of date: python -m tests.program.test_docs"


def test_every_command_has_its_help_text():
    shown = {command.removesuffix(" --help") for command in HELP.findall(read(COMMANDS))}
    assert ALL_COMMANDS.keys() <= shown


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_help_ends_with_two_examples_of_the_command(name):
    title, *lines = (ALL_COMMANDS[name].epilog or "").strip("\b\n").splitlines()
    assert title == "Examples:"
    assert len(lines) >= 2
    for line in lines:
        assert line.startswith(f"  {name}")
        assert len(line) <= 78  # what an 80-column terminal shows unbroken
        (arguments,) = invocations(f"  {line}")
        parse(arguments)


def test_help_names_the_defaults_of_the_embedded_bundles(monkeypatch, tmp_path):
    own = {"one": Sampling((1.0, 0.5, 0.25), guidance=3.0), "two": Sampling((0.5, 0.5, 0.5), guidance=3.0)}
    for name, sampling in own.items():
        write_bundle(tmp_path / name, replace(preset("tiny"), sampling=sampling, prompt_seconds=2.5))
    monkeypatch.setattr("audiolm_cli.bundles.catalogue.EMBEDDED", (tmp_path,))
    assert bundle_defaults("prompt_seconds") == "one and two 2.5"
    assert bundle_defaults("guidance") == "one and two 3"
    assert bundle_defaults("temperature") == "one 1,0.5,0.25; two 0.5"
    (tmp_path / "two" / "config.json").write_text("{")
    assert bundle_defaults("guidance") == "one 3"  # help comes nevertheless
    monkeypatch.setattr("audiolm_cli.bundles.catalogue.EMBEDDED", (tmp_path / "none",))
    assert bundle_defaults("guidance") == "the bundle's"


@pytest.mark.parametrize("name", ["continue", "generate", "resynth", "encode", "decode", "detect"])
def test_help_shows_every_option_in_one_group(name):
    command = ALL_COMMANDS[f"audiolm {name}"]
    text = command.get_help(command.make_context(name, [], resilient_parsing=True))
    groups = re.findall(r"^(\w+):$", text, re.M)
    assert groups[:3] == ["Arguments", "Options", "Output"] or name == "generate"
    assert groups[-1] == "Running"
    listed = text.partition("\nOptions:\n")[2]
    for param in command.get_params(command.make_context(name, [], resilient_parsing=True)):
        if param.param_type_name == "option":
            assert len(re.findall(rf"^  (-\w, )?{param.opts[0]}\b|^  {param.opts[-1]}, ", listed, re.M)) == 1, (
                param.name
            )


def invocations(text: str) -> Iterator[list[str]]:
    """The arguments of each `audiolm ...` in the blocks of code: after a pipe or xargs, too, without redirections."""
    text = HELP.sub("", text)
    blocks = re.findall(r"^    .*$", text, re.M) + RECIPES.findall(text)
    for line in "\n".join(blocks).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)  # leaves out what stands behind #
        lexer.whitespace_split = True
        words = [*lexer, "|"]
        if "audiolm" in words:
            first = words.index("audiolm") + 1
            end = next(n for n in range(first, len(words)) if words[n] in ("|", ">", ";", "&&"))
            yield words[first:end]


COMMANDS_SHOWN = [arguments for file in (README, COMMANDS) for arguments in invocations(read(file))]


def parse(arguments: list[str]) -> None:
    command, rest = typer.main.get_command(cli.app), arguments
    while isinstance(command, typer.core.TyperGroup):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(arguments[0], list(rest))


@pytest.mark.parametrize("arguments", COMMANDS_SHOWN, ids=" ".join)
def test_commands_parse(arguments):
    parse(arguments)


def test_commands_are_found_in_the_documents():
    assert ["continue", "prompt.wav", "-o", "out.wav"] in COMMANDS_SHOWN
    assert ["continue"] in COMMANDS_SHOWN  # behind a pipe, before >
    assert ["generate", "--unconditional", "-o", "new.wav", "-n", "4"] in COMMANDS_SHOWN  # before a comment
    assert len(COMMANDS_SHOWN) > 15


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe for file in (README, COMMANDS) for recipe in RECIPES.findall(read(file))])
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


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(file):
    for path, heading in LINK.findall(read(file)):
        target = file.parent / path if path else file
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)$", read(target), re.M)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_make_targets_and_modules_that_are_named_exist(file):
    makefile, text = read(ROOT / "Makefile"), read(file)
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M):
        assert f"\n{target}:" in makefile, target
    for module in re.findall(r"-m (audiolm_cli[\w.]*)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_the_architecture_names_what_each_room_may_import():
    table = read(ROOT / "docs" / "architecture.md").partition("## Who knows whom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)[^|]*\|[^|]*\|([^|]*)\|$", table, re.M)
    stated = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rows}
    assert {room: allowed - {"__init__"} for room, allowed in ROOMS.items()} == {room: stated[room] for room in ROOMS}


def test_the_lock_has_the_tested_versions():
    pinned = dict(re.findall(r"^([\w-]+)==([^\s;]+)", read(ROOT / "constraints.txt"), re.M))
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", read(ROOT / "requirements.lock"), re.M))
    assert {"numpy", "typer", "pytest"} <= locked.keys()
    assert {name: pinned[name] for name in locked if name in pinned} == {n: v for n, v in locked.items() if n in pinned}


if __name__ == "__main__":
    COMMANDS.write_text(with_help(read(COMMANDS)), encoding="utf-8")
