"""Arbitrary text at every option and arbitrary JSON at every key of a job list: exit code 0, 1 or 2, and one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolm_cli import request
from audiolm_cli.bundles import catalogue
from audiolm_cli.command_line import cli, planning
from audiolm_cli.command_line.arguments import RAY_ADDRESS

pytestmark = pytest.mark.slow

ARBITRARY = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SUFFIX = {"encode": ".safetensors", "plot": ".png"}
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
REQUESTS: dict[str, type[request.Request]] = {
    "continue": request.ContinueRequest,
    "generate": request.GenerateRequest,
    "resynth": request.ResynthRequest,
    "encode": request.EncodeRequest,
    "decode": request.DecodeRequest,
}
OPTIONS = [
    (command, parameter.opts[0])
    for command in REQUESTS
    for parameter in COMMANDS[command].params
    if parameter.opts[0].startswith("-") and not getattr(parameter, "is_flag", False) and parameter.name != "threads"
]
KEYS = sorted({name for kind in REQUESTS.values() for name in kind.options()})

characters = st.characters()  # surrogates and controls, too
texts = st.text(characters) | st.sampled_from(
    [
        "-1",
        "0",
        "1e400",
        "nan",
        "9" * 5000,
        "1,2,3",
        "{stem}",
        "{index:q}",
        "{stem:>1000000000}",
        "{",
        "\ud800",
        "x" * 300,
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda values: st.lists(values) | st.dictionaries(texts, values),
)


def inside(value: object) -> object:
    """What could name a place outside of the test's folder does not."""
    return value.lstrip("/").replace("..", "") if isinstance(value, str) else value


@pytest.fixture
def asked(fake, prompt, tmp_path, monkeypatch, capfd):
    """Runs a command line whose outputs are short, and holds what it answers against the promise."""
    make, plan = fake.continue_, planning.plan

    def few(asked):
        return dataclasses.replace(asked, num_samples=min(asked.num_samples, 3)) if asked.num_samples > 1 else asked

    def short(bundle, asked, prompts, **rest):
        if hasattr(asked, "duration"):
            asked = dataclasses.replace(asked, duration=0.01)
        return make(bundle, asked, prompts, **rest)

    for name in ("continue_", "generate", "resynth"):
        monkeypatch.setattr(sys.modules["audiolm_cli.pipeline"], name, short)
    stream = sys.modules["audiolm_cli.pipeline"].stream

    def short_stream(bundle, asked, prompt, **rest):
        if hasattr(asked, "duration"):
            asked = dataclasses.replace(asked, duration=0.01)
        return stream(bundle, asked, prompt, **rest)

    monkeypatch.setattr(sys.modules["audiolm_cli.pipeline"], "stream", short_stream)
    monkeypatch.setattr(planning, "plan", lambda asked, **rest: plan([few(each) for each in asked], **rest))
    monkeypatch.chdir(tmp_path)
    bundle = fake.load("speech", device="cpu", dtype="auto")
    (tmp_path / "tokens").write_bytes(fake.encode(bundle, np.zeros(1000, np.float32), None).save_bytes())
    before = prompt.read_bytes()

    def run(*arguments: str) -> int:
        code = cli.main(arguments)
        err = capfd.readouterr().err
        assert code in (0, 1, 2)
        assert "Traceback" not in err
        assert "unexpected" not in err
        assert err.count("\n") == (code != 0), err
        assert code == 0 or err.startswith("audiolm: error: ")
        assert len(err) < 50_000
        assert prompt.read_bytes() == before
        return code

    return run


def sources(command: str) -> list[str]:
    return {"generate": [], "decode": ["tokens"]}.get(command, ["prompt.wav"])


@ARBITRARY
@given(st.sampled_from(OPTIONS), texts)
@pytest.mark.filterwarnings("ignore")
def test_any_text_at_any_option(asked, option, text):
    command, name = option
    text = str(inside(text))
    if name == "--ray" and (not text or RAY_ADDRESS.fullmatch(text)):
        return  # which would be a cluster
    suffix = SUFFIX.get(name[2:], SUFFIX.get(command, ".wav"))
    for value in {text, text + suffix} if name in ("--output", "--name", "--plot") else {text}:
        output = (
            [] if name in ("--output", "--out-dir", "--name", "--jobs") else ["-o", f"out{SUFFIX.get(command, '.wav')}"]
        )
        output += ["--out-dir", "folder"] if name == "--name" else []
        asked(command, *([] if name == "--jobs" else sources(command)), *output, "-q", "-f", f"{name}={value}")


@ARBITRARY
@given(st.sampled_from(["continue", "resynth", "encode", "decode"]), texts)
def test_any_text_as_an_input(asked, command, text):
    output = ["-o", f"out{SUFFIX.get(command, '.wav')}", "-f"]
    asked(command, "-q", *output, "--", *([] if text == "-" else [str(inside(text))]))


@ARBITRARY
@given(st.sampled_from(sorted(REQUESTS)), st.dictionaries(st.sampled_from(KEYS), json_values, min_size=1) | json_values)
def test_any_json_in_a_job_list(asked, command, given):
    line = given
    if isinstance(given, dict):
        known = {"input": sources(command)[0]} if sources(command) else {}
        line = {**known, "output": "out" + SUFFIX.get(command, ".wav")}
        line |= {str(key).replace("_", "-"): inside(value) for key, value in given.items()}
    Path("jobs").write_text(json.dumps(line))
    asked(command, "--jobs", "jobs", "--out-dir", "folder", "-q", "-f")


@ARBITRARY
@given(st.binary())
def test_any_bytes_as_a_job_list(asked, data):
    Path("jobs").write_bytes(data)
    assert asked("continue", "--jobs", "jobs", "--out-dir", "folder", "-q") in (1, 2)


@ARBITRARY
@given(texts.filter(lambda text: text not in ("-", *catalogue.embedded())))
def test_any_text_as_a_bundle_or_a_recording(capfd, monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    for command in (["models", "show", "--offline"], ["models", "verify"], ["detect"]):
        assert cli.main([*command, "--", text]) == 1
        err = capfd.readouterr().err
        assert (err.count("\n"), "unexpected" in err) == (1, False)
