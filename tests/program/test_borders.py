"""Which rooms of the program may know which: read off the imports, those inside functions too."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

BASE = {"checks", "errors", "config", "fields", "console", "processor", "backend", "atomic"}
# Each room, and what it may import beside itself and BASE.
ROOMS = {
    "audio": set[str](),
    "codec": {"audio", "codebook"},
    "tokenizer": {"audio", "codebook"},
    "native": {"language_models"},  # whose engine it is: the one circle
    "language_models": {"native"},
    "detector": {"audio", "codec", "language_models"},
    "public": set[str](),
    "bundles": {"public", "codec", "tokenizer", "native", "language_models", "detector"},
    "provenance": {"audio", "bundles", "detector", "__init__"},
    "request": set[str](),
    "token_file": {"audio"},
    "rendering": {"audio", "bundles", "codec", "language_models", "request", "token_file"},
    "pipeline": {"audio", "bundles", "language_models", "rendering", "request", "token_file"},
    "mimi": {"public", "bundles", "native", "language_models", "pipeline", "rendering", "token_file"},
    "models": {"public", "bundles", "mimi"},
    "server": {"audio", "models", "bundles", "pipeline", "provenance", "request", "__init__"},
    "api": {"audio", "models", "bundles", "pipeline", "provenance", "request", "token_file"},
}


def modules() -> dict[str, Path]:
    files = (ROOT / "audiolm_cli").rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(node: ast.AST) -> Iterator[str]:
    """What a syntax tree imports of the program, but for type checkers."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "audiolm_cli":
        for name in node.names:
            full = f"{node.module}.{name.name}"
            yield full if full in MODULES else node.module
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


MODULES = modules()
IMPORTS = {name: set(imported(ast.parse(file.read_text(encoding="utf-8")))) for name, file in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_modules_import_each_other_in_no_circle():
    graphlib.TopologicalSorter({name: found - {name} for name, found in IMPORTS.items()}).prepare()


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_knows_only_those_below(name: str):
    allowed = ROOMS[name] | BASE | {name}
    known = {(module, other) for module in IMPORTS if room(module) == name for other in IMPORTS[module]}
    assert known
    assert not {pair for pair in known if room(pair[1]) not in allowed}


def test_inference_knows_no_training():
    """But for one command, `audiolm train`, which imports its own program when it is called."""
    outside = {module: found for module, found in IMPORTS.items() if room(module) != "training"}
    known = {(module, other) for module, found in outside.items() for other in found if room(other) == "training"}
    assert known == {("audiolm_cli.command_line.cli", "audiolm_cli.training.adapting.adapt")}
    cli = ast.parse(MODULES["audiolm_cli.command_line.cli"].read_text(encoding="utf-8"))
    importing = [node for node in cli.body if any(room(other) == "training" for other in imported(node))]
    assert [node.name for node in importing if isinstance(node, ast.FunctionDef)] == ["train"]
    assert len(importing) == 1


def test_the_package_imports_no_torch():
    code = "import sys, audiolm_cli.request, audiolm_cli.command_line.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
