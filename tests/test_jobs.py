import pytest

from audiolm_cli.command_line import jobs, planning
from audiolm_cli.command_line.options import Options, Request
from audiolm_cli.console import Console
from audiolm_cli.errors import ExistsError, InputError, OutputError, UsageError

AUDIO = (".wav", ".flac", ".ogg")


def plan(sources, samples=1):
    return planning.plan([Request(s, None, samples, Options()) for s in sources], out_dir="o", suffixes=AUDIO)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Recorder:
    """A task that notes what it is asked; inputs named bad... cannot be loaded, saved... not saved."""

    bundle, force, batch_size = None, False, 2

    def __init__(self, skip_existing=False):
        self.batches, self.skip_existing = [], skip_existing

    def check(self, options):
        if options.duration == 13:
            raise UsageError("unlucky")

    def seconds(self, job, loaded):
        return 1.0

    def load(self, job):
        if job.source.startswith("bad"):
            raise InputError(f"{job.source}: bad")
        return job.source

    def work(self, jobs, loaded, progress):
        self.batches.append(loaded)
        yield from (name.upper() for name in loaded)

    def save(self, job, result):
        if job.source.startswith("full"):
            raise OutputError(f"{job.target}: no space")
        if job.source.startswith("there"):
            raise ExistsError(f"{job.target}: exists already")
        assert result == job.source.upper()
        return {"path": job.target}


def test_one_failure_does_not_stop_the_rest(capfd):
    task = Recorder()
    sources = ["bad1", "a", "b", "bad2", "full", "c", "d", "bad3"]
    assert jobs.run(plan(sources), task, Console()) == 4
    assert task.batches == [["a"], ["b"], ["full", "c"], ["d"]]
    out, err = capfd.readouterr()
    assert out.splitlines() == ["o/a.wav", "o/b.wav", "o/c.wav", "o/d.wav"]
    assert [line.split(": ")[2] for line in err.splitlines()] == ["bad1", "bad2", "o/full.wav", "bad3"]


def test_the_first_failure_can_end_it(capfd):
    for sources, batches in (
        (["a", "bad", "b"], []),
        (["a", "full", "b"], [["a", "full"]]),
        (["a", "b", "bad"], [["a", "b"]]),
    ):
        task = Recorder()
        assert jobs.run(plan(sources), task, Console(), fail_fast=True) == 1
        assert task.batches == batches


def test_jobs_run_together_when_they_differ_in_nothing_but_the_seed():
    task = Recorder()
    wanted = [("a", 1, 5.0), ("b", 2, 5.0), ("c", 3, 4.0), ("d", 3, 5.0), ("e", 3, 5.0), ("f", 3, 5.0)]
    requests = [Request(s, None, 1, Options(seed=seed, duration=duration)) for s, seed, duration in wanted]
    planned = planning.plan(requests, out_dir="o", suffixes=AUDIO)
    assert jobs.run(planned, task, Console()) == 0
    assert task.batches == [["a", "b"], ["c"], ["d", "e"], ["f"]]


def test_options_that_the_model_cannot_follow_are_refused_before_anything_is_made():
    task = Recorder()
    requests = [Request(source, None, 1, Options(duration=d)) for source, d in (("a", 1), ("b", 13))]
    with pytest.raises(UsageError, match="unlucky"):
        jobs.run(planning.plan(requests, out_dir="o", suffixes=AUDIO), task, Console())
    assert task.batches == []


def test_a_bad_input_is_reported_once_for_all_its_samples(capfd):
    task = Recorder()
    assert jobs.run(plan(["a", "bad"], samples=3), task, Console()) == 3
    assert task.batches == [["a", "a"], ["a"]]
    assert capfd.readouterr().err == "audiolm: error: bad: bad\n"


def test_unreadable_inputs_are_reported_once(capfd):
    open("a.wav", "w").close()
    planned = plan(["a.wav", "missing.wav", "."], samples=3)
    assert {job.source for job in jobs.readable(planned, Console())} == {"a.wav"}
    assert capfd.readouterr().err.splitlines() == [
        "audiolm: error: missing.wav: no such file",
        "audiolm: error: .: a directory, not a recording",
    ]


@pytest.mark.parametrize(("skip_existing", "failed"), [(True, 0), (False, 1)])
def test_what_comes_up_meanwhile_is_kept(capfd, skip_existing, failed):
    assert jobs.run(plan(["a", "there"]), Recorder(skip_existing), Console()) == failed
    out, err = capfd.readouterr()
    assert out == "o/a.wav\n"
    assert err.splitlines() == [
        "audiolm: o/there.wav: has come up meanwhile and is kept"
        if skip_existing
        else "audiolm: error: o/there.wav: exists already"
    ]
