import types
from typing import Any

import pytest

from audiolm_cli.command_line import planning, runner
from audiolm_cli.command_line.arguments import RunOptions
from audiolm_cli.command_line.batch import BatchRunner
from audiolm_cli.command_line.planning import PlannedOutput
from audiolm_cli.console import Console
from audiolm_cli.errors import ExistsError, InputError, OutputError, UsageError
from audiolm_cli.request import ContinueRequest
from tests.helpers.fakes import CONFIG


def plan(sources, samples=1):
    return planning.plan([ContinueRequest(s, num_samples=samples, seed=0) for s in sources], out_dir="o")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Recorder(BatchRunner):
    """Notes what it is asked; inputs named bad... cannot be read, full... and there... not be written."""

    batch_size = 2

    def __init__(self, skip_existing=False):
        bundle: Any = types.SimpleNamespace(config=CONFIG)
        super().__init__(bundle, RunOptions(skip_existing=skip_existing), Console())
        self.batches = []

    def check(self, request):
        if request.duration == 13:
            raise UsageError("unlucky")

    def seconds(self, output, read):
        return 1.0

    def read(self, output):
        if output.request.input.startswith("bad"):
            raise InputError(f"{output.request.input}: bad")
        return output.request.input

    def make(self, batch, read, progress):
        self.batches.append(read)
        yield from (name.upper() for name in read)

    def write(self, output, made):
        if output.request.input.startswith("full"):
            raise OutputError(f"{output.target}: no space")
        if output.request.input.startswith("there"):
            raise ExistsError(f"{output.target}: exists already")
        assert made == output.request.input.upper()
        return {"path": output.target}


def run(planned, maker, **options):
    return runner.run_batches(planned, maker, maker.console, **options)


def test_one_failure_does_not_stop_the_rest(capfd):
    maker = Recorder()
    sources = ["bad1", "a", "b", "bad2", "full", "c", "d", "bad3"]
    assert run(plan(sources), maker) == 4
    assert maker.batches == [["a"], ["b"], ["full", "c"], ["d"]]
    out, err = capfd.readouterr()
    assert out.splitlines() == ["o/a.wav", "o/b.wav", "o/c.wav", "o/d.wav"]
    assert [line.split(": ")[2] for line in err.splitlines()] == ["bad1", "bad2", "o/full.wav", "bad3"]


def test_a_format_without_the_bundles_rate_is_refused_before_anything_is_made():
    maker = Recorder()
    maker.rate = 22050
    with pytest.raises(UsageError, match=r"\.opus: cannot have the bundle's rate, 22050 Hz"):
        run([*plan(["a"]), PlannedOutput(ContinueRequest("b"), 1, 0, "b.opus")], maker)
    assert maker.batches == []


def test_the_first_failure_can_end_it(capfd):
    for sources, batches in (
        (["a", "bad", "b"], []),
        (["a", "full", "b"], [["a", "full"]]),
        (["a", "b", "bad"], [["a", "b"]]),
    ):
        maker = Recorder()
        assert run(plan(sources), maker, fail_fast=True) == 1
        assert maker.batches == batches


def test_outputs_are_made_together_when_they_differ_in_nothing_but_the_seed():
    maker = Recorder()
    wanted = [("a", 1, 5.0), ("b", 2, 5.0), ("c", 3, 4.0), ("d", 3, 5.0), ("e", 3, 5.0), ("f", 3, 5.0)]
    requests = [ContinueRequest(s, seed=seed, duration=duration) for s, seed, duration in wanted]
    planned = planning.plan(requests, out_dir="o")
    assert run(planned, maker) == 0
    assert maker.batches == [["a", "b"], ["c"], ["d", "e"], ["f"]]


def test_options_that_the_model_cannot_follow_are_refused_before_anything_is_made():
    maker = Recorder()
    requests = [ContinueRequest(source, duration=d) for source, d in (("a", 1), ("b", 13))]
    with pytest.raises(UsageError, match="unlucky"):
        run(planning.plan(requests, out_dir="o"), maker)
    assert maker.batches == []


def test_a_bad_input_is_reported_once_for_all_its_samples(capfd):
    maker = Recorder()
    assert run(plan(["a", "bad"], samples=3), maker) == 3
    assert maker.batches == [["a", "a"], ["a"]]
    assert capfd.readouterr().err == "audiolm: error: bad: bad\n"


def test_unreadable_inputs_are_reported_once(capfd):
    open("a.wav", "w").close()
    planned = plan(["a.wav", "missing.wav", "."], samples=3)
    assert {output.request.input for output in runner.with_readable_inputs(planned, Console())} == {"a.wav"}
    assert capfd.readouterr().err.splitlines() == [
        "audiolm: error: missing.wav: no such file",
        "audiolm: error: .: a directory, not a recording",
    ]


@pytest.mark.parametrize(("skip_existing", "failed"), [(True, 0), (False, 1)])
def test_what_comes_up_meanwhile_is_kept(capfd, skip_existing, failed):
    assert run(plan(["a", "there"]), Recorder(skip_existing)) == failed
    out, err = capfd.readouterr()
    assert out == "o/a.wav\n"
    assert err.splitlines() == [
        "audiolm: o/there.wav: has come up meanwhile and is kept"
        if skip_existing
        else "audiolm: error: o/there.wav: exists already"
    ]
