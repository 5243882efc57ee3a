"""What a run writes is named and checked before anything is done, and nothing that is there is lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from audiolm_cli import planning
from audiolm_cli.errors import OutputError, UsageError
from audiolm_cli.jobs import DEFAULT
from audiolm_cli.options import Options, Request
from audiolm_cli.planning import Places

AUDIO = (".wav", ".flac", ".ogg")


def plan(sources, output=None, out_dir=None, samples=1, options=DEFAULT, **settings):
    requests = [Request(source, output, samples, options) for source in sources]
    return planning.plan(requests, out_dir=out_dir, suffixes=AUDIO, **settings)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_names_of_outputs():
    assert [job.target for job in plan(["a.mp3"], "b.flac")] == ["b.flac"]
    assert [job.target for job in plan(["a.mp3"], "b.flac", samples=2)] == ["b.0.flac", "b.1.flac"]
    assert [job.target for job in plan(["x/a.b.mp3", "-"], out_dir="o")] == ["o/a.b.wav", "o/stdin.wav"]
    assert [job.target for job in plan(["a.mp3"], "-")] == ["-"]
    planned = plan(["a.mp3", "b.mp3"], out_dir="o", samples=2)
    assert [job.target for job in planned] == ["o/a.0.wav", "o/a.1.wav", "o/b.0.wav", "o/b.1.wav"]
    assert [(job.position, job.sample) for job in planned] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("sources", "options", "says"),
    [
        (["a.wav"], {}, "either -o FILE or --out-dir"),
        (["a.wav", "b.wav"], {"output": "-"}, "one sample"),
        (["-", "-"], {"out_dir": "o"}, "standard input"),
        (["a.wav"], {"output": "-", "samples": 2}, "one sample"),
        (["a.wav"], {"output": "b.mp3"}, ".wav or .flac or .ogg"),
        (["a.wav"], {"output": "b"}, ".wav or .flac or .ogg"),
        (["a.wav"], {"out_dir": "o", "name": "{stem}.mp3"}, "--name: must end in"),
        (["a.wav"], {"out_dir": "o", "name": "{stem}/a.wav"}, "not folders"),
        (["a.wav"], {"out_dir": "o", "name": "{steam}.wav"}, "not {steam}"),
        (["a.wav"], {"out_dir": "o", "name": "{}.wav"}, "not {}"),
        (["a.wav"], {"out_dir": "o", "name": "{stem.__class__}.wav"}, "not {stem.__class__}"),
        (["a.wav"], {"out_dir": "o", "name": "{stem.wav"}, "--name"),
        (["a.wav"], {"out_dir": "o", "name": "{stem}.wav", "samples": 2}, "needs {index}"),
    ],
)
def test_what_cannot_be(sources, options, says):
    with pytest.raises(UsageError, match=says):
        plan(sources, **options)


def test_names_from_a_template():
    planned = plan(["x/a.mp3", "b{0}.flac"], out_dir="o", samples=2, name="{position:02}-{stem}.{index}.flac")
    assert [job.target for job in planned] == [
        "o/00-a.0.flac", "o/00-a.1.flac", "o/01-b{0}.0.flac", "o/01-b{0}.1.flac",
    ]  # fmt: skip
    assert [job.target for job in plan([None], out_dir="o", samples=2)] == ["o/generated.0.wav", "o/generated.1.wav"]


def test_two_jobs_for_one_name_are_refused():
    with pytest.raises(OutputError, match=r"x/a.wav and y/a.flac would both be written"):
        plan(["x/a.wav", "y/a.flac"], out_dir="o", force=True)
    os.makedirs("real")
    os.symlink("real", "link")
    with pytest.raises(OutputError, match="would both be written"):
        plan(["a.wav", "a.wav"], out_dir="link", force=True)


def test_an_input_is_never_overwritten():
    open("a.wav", "w").close()
    for options in ({"output": "./a.wav"}, {"out_dir": "."}):
        with pytest.raises(OutputError, match="is an input itself"):
            plan(["a.wav"], force=True, **options)


def test_what_exists_is_refused_without_force():
    open("b.1.wav", "w").close()
    with pytest.raises(OutputError, match=r"b\.1\.wav: exists already"):
        plan(["a.wav"], "b.wav", samples=2)
    assert len(plan(["a.wav"], "b.wav", samples=2, force=True)) == 2


def test_what_exists_can_be_kept():
    open("b.1.wav", "w").close()
    planned = plan(["a.wav"], "b.wav", samples=3, skip_existing=True)
    assert [(job.sample, job.target) for job in planned] == [(0, "b.0.wav"), (2, "b.2.wav")]


def test_places_that_cannot_take_an_output():
    os.mkdir("folder.wav")
    open("file", "w").close()
    with pytest.raises(OutputError, match=r"folder\.wav: is a folder"):
        plan(["a.wav"], "folder.wav", force=True)
    with pytest.raises(OutputError, match="there is no folder nowhere"):
        plan(["a.wav"], "nowhere/b.wav")
    with pytest.raises(OutputError, match="file: not a folder"):
        plan(["a.wav"], out_dir="file")
    with pytest.raises(OutputError, match="cannot be made"):
        plan(["a.wav"], out_dir="file/deeper")
