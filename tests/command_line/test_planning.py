"""What a run writes is named and checked before anything is done, and nothing that is there is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from audiolm_cli.command_line import planning
from audiolm_cli.command_line.places import Places, _one_file
from audiolm_cli.errors import OutputError, UsageError
from audiolm_cli.request import ContinueRequest, ResynthRequest
from tests.helpers.processes import spawn


def plan(sources, output=None, out_dir=None, samples=1, plot=None, speaker=None, **settings):
    common = {"output": output, "num_samples": samples, "plot": plot, "seed": 0}
    kind, own = (ContinueRequest, {}) if speaker is None else (ResynthRequest, {"speaker": speaker})
    return planning.plan([kind(source, **common, **own) for source in sources], out_dir=out_dir, **settings)


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
        (["a.wav"], {"output": "b.m4a"}, ".wav, .flac, .ogg, .opus or .mp3"),
        (["a.wav"], {"output": "b"}, "must end in .wav"),
        (["a.wav"], {"out_dir": "o", "name": "{stem}.m4a"}, "--name: must end in"),
        (["a.wav"], {"out_dir": "o", "name": "{stem}/a.wav"}, "not folders"),
        (["a.wav"], {"out_dir": "o", "name": "{steam}.wav"}, "not {steam}"),
        (["a.wav"], {"out_dir": "o", "name": "{}.wav"}, "not {}"),
        (["a.wav"], {"out_dir": "o", "name": "{stem.__class__}.wav"}, "not {stem.__class__}"),
        (["a.wav"], {"out_dir": "o", "name": "{stem.wav"}, "--name"),
        (["a.wav"], {"out_dir": "o", "name": "{index:q}.wav"}, "--name: Unknown format code"),
        (["a.wav"], {"out_dir": "o", "name": "{stem:>1000000000}.wav"}, "no format for a name"),
        (["a.wav"], {"out_dir": "o", "name": "{index:{position}}.wav"}, "no format for a name"),
        (["a.wav"], {"out_dir": "o", "name": "{index:c}{stem}.wav"}, "--name: must be a path"),  # a NUL
        (["a.wav"] * 48, {"out_dir": "o", "name": "{position:c}x.wav"}, "--name: "),  # a slash, if a NUL were none
        (["a.wav"], {"out_dir": "o", "name": "{stem:.0}.wav"}, "the name must end in"),
        (["a.wav"], {"output": "b.wav/"}, "names a folder, not a file"),
        (["a.wav"], {"output": "b.wav", "plot": "b.jpg"}, "plot: must end in .png"),
        (["a.wav"], {"output": "b.wav", "plot": "b.png/"}, "names a folder, not a file"),
        (["a.wav"], {"output": "b.wav", "plot": "{name}.png"}, "plot: knows"),
        (["a.wav"], {"output": "b.wav", "plot": "b.png", "samples": 2}, "--plot: several outputs"),
        (["a.wav", "b.wav"], {"out_dir": "o", "plot": "b.png"}, "--plot: several outputs"),
        (["a.wav"], {"output": "b.wav", "plot": "{stem}.png", "samples": 2}, "--plot: several"),
        (["-"], {"output": "b.wav", "speaker": "-"}, "standard input"),
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


def test_pictures_from_a_template():
    plot = "o/{stem}-{position}.{index}.png"
    planned = plan(["x/a.mp3", "b.flac"], out_dir="o", samples=2, plot=plot)
    assert [job.picture for job in planned] == ["o/a-0.0.png", "o/a-0.1.png", "o/b-1.0.png", "o/b-1.1.png"]
    assert plan(["a.mp3"], "b.wav", plot="c.PNG")[0].picture == "c.PNG"
    with pytest.raises(OutputError, match=r"^a\.png: the picture of x/a\.mp3 and the picture of y/a\.mp3 would both"):
        plan(["x/a.mp3", "y/a.mp3"], out_dir="o", name="{position}.wav", plot="{stem}.png")


def test_an_output_and_its_picture_are_a_pair():
    def left(count=2, force=False):
        planned = plan(["a.mp3"], "b.wav", samples=count, plot="{index}.png", skip_existing=not force, force=force)
        return [(job.sample, job.existing) for job in planned]

    assert left() == [(0, None), (1, None)]
    open("b.0.wav", "w").close()
    assert left() == [(0, "b.0.wav"), (1, None)]
    open("0.png", "w").close()
    open("1.png", "w").close()
    assert left() == [(1, "1.png")]
    assert left(force=True) == [(0, None), (1, None)]
    with pytest.raises(OutputError, match=r"^0\.png: exists already"):
        plan(["a.mp3"], "c.wav", plot="0.png")


@pytest.fixture
def read():
    """A recording, and the other names that it has."""
    os.makedirs("real")
    open("real/a.wav", "w").close()
    os.symlink("real/a.wav", "link.wav")
    os.link("real/a.wav", "hard.wav")
    os.symlink("real", "folder")
    return "real/a.wav"


SAME = ["real/a.wav", "./real//a.wav", "real/../real/a.wav", "link.wav", "hard.wav", "folder/a.wav"]


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("what", ["an input", "the job list", "a file of the bundle"])
def test_what_is_read_is_never_written(read, name, what):
    places = Places([(read, what)])
    with pytest.raises(OutputError, match=f"is {what} itself and would be lost"):
        places.take(name, "b.wav")
    assert places.take("new.wav", "b.wav") is False


@pytest.mark.parametrize("name", SAME)
def test_inputs_speakers_and_what_earlier_jobs_make_are_read(read, name):
    for source, speaker in ((read, None), ("b.wav", read)):
        with pytest.raises(OutputError, match="is an input itself and would be lost"):
            plan([source], name, speaker=speaker, force=True)
    requests = [ContinueRequest("x.wav", output="y.wav"), ContinueRequest("y.wav", output="z.wav")]
    with pytest.raises(OutputError, match="is an input itself and would be lost"):
        planning.plan(requests, out_dir=None)
    with pytest.raises(OutputError, match="is an input itself and would be lost"):
        plan(["x.png"], "b.wav", plot="x.png", force=True)


def test_the_same_input_for_many_jobs(read):
    assert len(plan([read, read, "link.wav"], out_dir="o", name="{position}.wav")) == 3


@pytest.mark.parametrize(("name", "other"), [("b.wav", "./b.wav"), ("real/b.wav", "folder/b.wav"), ("b.wav", "to.wav")])
def test_two_names_of_one_place(read, name, other):
    os.symlink("b.wav", "to.wav")  # which is not there yet
    places = Places([])
    places.take(name, "one")
    with pytest.raises(OutputError, match="one and two would both be written there"):
        places.take(other, "two")


def test_hard_links_of_outputs_are_different_places():
    open("a.wav", "w").close()
    os.link("a.wav", "b.wav")
    places = Places([])
    assert places.take("a.wav", "one")
    assert places.take("b.wav", "two")


def test_names_that_a_file_system_takes_for_one(monkeypatch):
    """Such as vfat's and APFS's, which do not tell cases or compositions of letters apart."""
    names = ["É.wav", "é.wav", "E\u0301.wav"]
    places = Places([])
    assert not any(places.take(name, name) for name in names)
    assert os.listdir() == []
    monkeypatch.setattr(
        "audiolm_cli.command_line.places._one_file", lambda folder, first, second: first.lower() == second.lower()
    )
    places = Places([])
    places.take("A.wav", "one")
    places.take("ab.wav", "two")
    with pytest.raises(OutputError, match=r"a\.wav: one and three would both be written there"):
        places.take("a.wav", "three")


def test_a_file_system_that_does_not_tell_cases_apart(tmp_path):
    if not shutil.which("mkfs.vfat"):
        pytest.skip("mkfs.vfat is not installed")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mkfs.vfat", "disk"], capture_output=True, check=True)
    if subprocess.run(["mount", "-o", "loop,utf8", "disk", "mounted"], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        assert _one_file("mounted", "a.wav", "A.wav")
        assert not _one_file("mounted", "a.wav", "b.wav")
        assert os.listdir("mounted") == []
    finally:
        subprocess.run(["umount", "mounted"], check=True)


def test_a_bundle_takes_nothing_in(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "cache/snapshots/1").mkdir(parents=True)
    (tmp_path / "cache/blobs").mkdir()
    os.symlink("../bundle/codec.safetensors", tmp_path / "cache/codec.safetensors")
    os.symlink("blobs/0123", tmp_path / "cache/fine.safetensors")
    for name in ("bundle/codec.safetensors", "cache/codec.safetensors", "bundle/new.wav", "cache/fine.safetensors"):
        with pytest.raises(OutputError, match=f"{name}: is in the folder of a bundle"):
            Places([]).take(name, "x")
    assert Places([]).take("cache/new.wav", "x") is False
    folder.rename(tmp_path / "other")


def test_the_bundle_in_use_is_read(audiolm, fake, prompt, tmp_path):
    """Its files may be links to elsewhere."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/config.json").touch()
    (tmp_path / "part.safetensors").touch()
    os.symlink("../part.safetensors", "bundle/codec.safetensors")
    code, _, err = audiolm("encode", prompt, "-o", "part.safetensors", "-f", "-m", "bundle")
    assert (code, err) == (1, "audiolm: error: part.safetensors: is a file of the bundle itself and would be lost\n")
    assert fake.loads == []


def test_what_is_no_regular_file():
    os.mkfifo("pipe.wav")
    os.symlink(os.devnull, "null.wav")
    os.symlink("loop.wav", "loop.wav")
    for name in ("pipe.wav", "null.wav", "loop.wav"):
        with pytest.raises(OutputError, match=f"{name}: not a regular file"):
            plan(["a.wav"], name, force=True)
    open("file", "w").close()
    with pytest.raises(OutputError, match="there is no folder file"):
        plan(["a.wav"], "file/a.wav")
    with pytest.raises(OutputError, match=r"nowhere/a\.png: there is no folder nowhere"):
        plan(["a.wav"], "b.wav", plot="nowhere/a.png")
    for name in ("..", ".", "o/"):
        with pytest.raises(UsageError, match="names a folder"):
            Places([]).take(name, "x")


@pytest.mark.parametrize("name", ["x" * 252 + ".wav", "ä" * 126 + ".wav", "/".join(["x" * 200] * 25) + ".wav"])
def test_names_that_are_too_long(name):
    with pytest.raises(OutputError, match="File name too long"):
        plan(["a.wav"], name)


def test_the_longest_possible_name(tmp_path):
    from audiolm_cli import atomic

    name = "x" * 251 + ".wav"
    assert plan(["a.wav"], name)[0].target == name
    atomic.write(name, b"x")
    assert os.listdir() == [name]


@pytest.mark.slow
def test_standard_input_and_output_may_be_files(prompt, tmp_path):
    """Whose names the program does not see."""
    before = prompt.read_bytes()

    def run(arguments, stdin, stdout):
        process = spawn(*arguments, "-q", cwd=tmp_path, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        return process.communicate(timeout=60)[1].decode(), process.returncode

    with open(prompt, "rb") as source:
        wanted = "audiolm: error: prompt.wav: is an input itself and would be lost\n", 1
        assert run(["continue", "-", "-o", "prompt.wav", "-f"], source, subprocess.PIPE) == wanted
    with open(prompt, "ab") as target:
        wanted = "audiolm: error: standard output: is an input itself and would be lost\n", 1
        assert run(["continue", "prompt.wav", "-o", "-"], None, target) == wanted
    with open(tmp_path / "out.wav", "wb") as target:
        wanted = "audiolm: error: out.wav: is standard output, too\n", 1
        assert run(["continue", "prompt.wav", "-o", "out.wav", "-f"], None, target) == wanted
    assert prompt.read_bytes() == before


def test_a_job_list_stays(audiolm, fake, prompt, tmp_path):
    content = json.dumps({"input": str(prompt), "output": "jobs.wav"})
    (tmp_path / "jobs.wav").write_text(content)
    code, out, err = audiolm("continue", "--jobs", "jobs.wav", "-f")
    assert (code, out) == (1, "")
    assert err == "audiolm: error: jobs.wav: is the job list itself and would be lost\n"
    assert (tmp_path / "jobs.wav").read_text() == content


def test_a_picture_is_checked_before_the_model_loads(audiolm, fake, prompt, tmp_path):
    before = prompt.read_bytes()
    for picture, code in (("prompt.wav", 2), ("v.wav", 2), ("nodir/", 2), ("-", 2), ("/dev/null", 2), ("no/a.png", 1)):
        assert audiolm("continue", prompt, "-o", "v.wav", "-f", "--plot", picture)[:2] == (code, "")
    assert fake.loads == []
    assert (prompt.read_bytes(), os.listdir()) == (before, ["prompt.wav"])


@pytest.mark.slow
def test_half_of_a_pair_is_completed_by_what_belongs_to_it(audiolm, fake, prompt, tmp_path):
    pytest.importorskip("matplotlib")
    command = (
        "continue",
        prompt,
        "-o",
        "a.wav",
        "--plot",
        "a.png",
        "--duration",
        "1",
        "--skip-existing",
        "-q",
        "--seed",
    )
    assert audiolm(*command, 1)[0] == 0
    pair = {name: (tmp_path / name).read_bytes() for name in ("a.wav", "a.png")}
    assert audiolm(*command, 2) == (0, "", "")
    assert len(fake.loads) == 1
    for name, other in (("a.wav", "a.png"), ("a.png", "a.wav")):
        os.unlink(name)
        code, out, err = audiolm(*command, 2)
        assert (code, out, os.path.exists(name)) == (1, "", False)
        assert err == f"audiolm: error: {other}: exists already, made in another way; use --force to make both again\n"
        assert audiolm(*command, 1) == (0, "a.wav\n", "")
        assert {name: (tmp_path / name).read_bytes() for name in pair} == pair
    (tmp_path / "a.wav").write_bytes(b"no sound")
    os.unlink("a.png")
    assert audiolm(*command, 1)[0] == 1
    assert (tmp_path / "a.wav").read_bytes() == b"no sound"


@pytest.mark.parametrize("command", ["continue", "encode"])
@pytest.mark.parametrize("option", ["--skip-existing", "--json"])
def test_what_another_process_makes_meanwhile_is_kept(audiolm, fake, prompt, tmp_path, monkeypatch, command, option):
    """Of two with --skip-existing and one output the slower has not failed."""
    target = {"continue": "a.wav", "encode": "a.safetensors"}[command]
    name = {"continue": "continue_"}.get(command, command)
    make = getattr(sys.modules["audiolm_cli.pipeline"], name)

    def slower(*arguments, **options):
        (tmp_path / target).write_bytes(b"theirs")
        return make(*arguments, **options)

    monkeypatch.setattr(sys.modules["audiolm_cli.pipeline"], name, slower)
    code, out, err = audiolm(command, prompt, "-o", target, option, *(["--seed", "1"] if command == "continue" else []))
    assert (code, out) == ({"--skip-existing": 0}.get(option, 1), "")
    kept = {"--skip-existing": f"{target}: has come up meanwhile and is kept"}
    assert err.splitlines()[-1] == "audiolm: " + kept.get(
        option, f"error: {target}: exists already; use --force to replace it"
    )
    assert (tmp_path / target).read_bytes() == b"theirs"
    assert sorted(os.listdir()) == [target, "prompt.wav"]
