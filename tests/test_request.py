"""One check for what the command line and job lists ask for."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_cli.command_line.planning import read_jobs
from audiolm_cli.config import Sampling, preset
from audiolm_cli.errors import UsageError
from audiolm_cli.request import (
    ContinueRequest,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    Request,
    ResynthRequest,
)

KINDS: tuple[type[Request], ...] = (ContinueRequest, GenerateRequest, ResynthRequest, EncodeRequest, DecodeRequest)
OPTIONS = [(kind, name) for kind in KINDS for name in kind.options()]
DEFAULT = ContinueRequest(seed=1)


def read(*lines: str, request: Request = DEFAULT) -> list[Request]:
    return read_jobs([os.fsencode(line) for line in lines], "jobs.jsonl", request)


def test_lines_override_the_defaults() -> None:
    first, second = read(
        '{"input": "a.wav"}',
        "",
        '{"input": "b.wav", "output": "c.wav", "duration": 2, "temperature": [1, 0.8, "0.5"], "num-samples": 3}',
    )
    assert first == ContinueRequest("a.wav", duration=7.0, seed=1)
    asked = ContinueRequest("b.wav", output="c.wav", num_samples=3, duration=2.0, seed=1, temperature=(1.0, 0.8, 0.5))
    assert second == asked


def test_a_command_without_inputs() -> None:
    assert read('{"duration": 1}', request=GenerateRequest())[0].input is None
    with pytest.raises(UsageError, match="unknown key 'input'"):
        read('{"input": "a.wav"}', request=GenerateRequest())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("\xff", "not JSON"),
        ("{\udcff}", "not UTF-8"),
        ('{"input": "a.wav", "modle": "x"}', "unknown key 'modle'; known are best-of, continuation-only, duration, "),
        ('{"input": "a.wav", "num_samples": 2}', "unknown key 'num_samples'"),
        ('{"input": "a.wav", "speaker": "b.wav"}', "unknown key 'speaker'"),
        ("{}", "the key 'input' is missing"),
        ('{"input": 3}', "input: must be a path"),
        ('{"input": ""}', "input: must be a path"),
        ('{"input": "a.wav", "duration": "soon"}', "duration: must be a number"),
        ('{"input": "a.wav", "duration": true}', "duration: must be a number"),
        ('{"input": "a.wav", "duration": NaN}', "duration: must be above 0"),
        ('{"input": "a.wav", "seed": 1.5}', "seed: must be a whole number"),
        ('{"input": "a.wav", "seed": -1}', "seed: must be from 0"),
        ('{"input": "a.wav", "num-samples": 0}', "num-samples: must be from 1"),
        ('{"input": "a.wav", "temperature": [1, 2]}', "temperature: give one number or three"),
        ('{"input": "a.wav", "temperature": {"a": 1}}', "temperature: "),
        ('{"input": "a.wav", "continuation-only": "yes"}', "continuation-only: must be true or false"),
        ('{"input": "a.wav", "plot": "-"}', "plot: draws into a file, not to standard output"),
        ('{"input": "a.wav", "plot": "{stem}.jpg"}', "plot: must end in .png"),
        ('{"input": "a.wav", "plot": "{input}.png"}', "plot: knows {stem}, {index} and {position}, not {input}"),
        ('{"input": "a.wav", "plot": 1}', "plot: must be a path"),
        ('{"input": "a.wav", "seed": null}', "seed: must not be null; leave the key out"),
        ('{"input": "a.wav", "duration": null}', "duration: must not be null; leave the key out"),
        ('{"input": null}', "input: must not be null; leave the key out"),
        ('{"input": "a\\ud800.wav"}', "input: 'a\\ud800.wav' has characters that no file's name has"),
        ('{"input": "a.wav", "output": "\\udfff.wav"}', "output: '\\udfff.wav' has characters"),
        ('{"input": "a.wav", "output": "a\\u0000.wav"}', "output: must be a path"),
        ('{"input": "a.wav", "temperature": [1, null, 1]}', "temperature: "),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"^jobs\.jsonl:3: ") as caught:
        read('{"input": "a.wav"}', "", line)
    assert says in str(caught.value)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(UsageError, match="no jobs"):
        read("", " ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@pytest.mark.slow
@given(st.sampled_from(OPTIONS), json_values)
def test_any_value_is_taken_or_refused_in_one_line(option: tuple[type[Request], str], value: Any) -> None:
    kind, name = option
    try:
        kind(**{name: value})
    except UsageError as error:
        assert str(error).startswith(f"{name.replace('_', '-')}: ")
        assert "\n" not in str(error).replace(json.dumps(value), "")


def test_the_same_check_for_text_and_numbers() -> None:
    assert ContinueRequest(top_k="10,0,3", seed=0) == ContinueRequest(top_k=[10, 0, 3], seed=0)  # type: ignore[arg-type]
    assert ContinueRequest(top_k=(10, 0, 3)).top_k == (10, 0, 3)
    assert ContinueRequest(duration="2.5").duration == ContinueRequest(duration=2.5).duration  # type: ignore[arg-type]
    assert ContinueRequest(top_p=1).top_p == (1.0, 1.0, 1.0)


def test_a_request_stays_as_it_was_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.duration = 3  # type: ignore[misc]
    assert hash(DEFAULT) == hash(ContinueRequest(seed=1))


def test_the_seed_is_random_unless_given() -> None:
    assert ContinueRequest().seed != ContinueRequest().seed
    assert dataclasses.replace(DEFAULT, duration=2).seed == 1


def test_what_is_not_asked_for_is_as_the_bundle_has_it() -> None:
    own = Sampling((1.0, 0.9, 0.8), (5, 0, 0), (0.9, 0.9, 0.9), 2.0, 1.0)
    assert DEFAULT.sampling(own) == own
    asked = ContinueRequest(temperature=0, top_p=(1, 0.5, 0.25), guidance=0).sampling(own)
    assert asked == Sampling((0.0, 0.0, 0.0), (5, 0, 0), (1.0, 0.5, 0.25), 0.0, 1.0)
    assert [asked.stage(name).top_p for name in ("semantic", "coarse", "fine")] == [1.0, 0.5, 0.25]
    assert [own.stage(name).guidance for name in ("semantic", "coarse", "fine")] == [1.0, 2.0, 0]


def test_a_request_takes_a_bundles_sampling_as_far_as_its_command_has_it() -> None:
    own = Sampling((1.0, 0.9, 0.8), (5, 0, 0), (0.9, 0.9, 0.9), 2.0, 1.0)
    for kind in (ContinueRequest, GenerateRequest, ResynthRequest):
        request = kind.with_sampling(own, seed=3)
        assert request.seed == 3
        assert request.sampling(Sampling()) == (
            dataclasses.replace(own, prompt_guidance=0.0) if kind is ResynthRequest else own
        )


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ContinueRequest(duration=0.03), "duration: must be at least 0.04 seconds"),
        (ContinueRequest(prompt_seconds=0.03), "prompt-seconds: must be at least"),
        (GenerateRequest(duration=0.03), "duration: must be at least"),
        (DecodeRequest(quantizers=13), "quantizers: tiny has only 12"),
    ],
)
def test_what_a_bundle_cannot_do(request_: Request, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        request_.check(preset("tiny"))


QUIET = dataclasses.replace(preset("tiny"), pause_tokens=(1, 2))


def test_the_longest_pause_is_what_is_asked_for_or_the_bundles() -> None:
    own = dataclasses.replace(QUIET, max_pause=0.5)
    assert [DEFAULT.pause_limit(config) for config in (QUIET, own)] == [math.inf, 0.5]
    for kind in (ContinueRequest, GenerateRequest):
        asked: tuple[Any, ...] = (2, "0.2", "inf")
        assert [kind(max_pause=seconds).pause_limit(own) for seconds in asked] == [2, 0.2, math.inf]
        kind(max_pause=1).check(QUIET)
    assert ResynthRequest().pause_limit(own) == math.inf
    assert ContinueRequest(temperature=0).pause_limit(own) == math.inf
    for anything in (ContinueRequest(max_pause=math.inf), ContinueRequest(temperature=0, max_pause=math.inf)):
        anything.check(preset("tiny"))


@pytest.mark.parametrize(
    ("options", "config", "says"),
    [
        ({"max_pause": 1}, preset("tiny"), "max-pause: tiny has no list of the tokens that stand for silence"),
        ({"max_pause": 1, "temperature": (0, 1, 1)}, QUIET, "max-pause: .* a temperature of 0 in stage 1"),
        ({"max_pause": 0}, QUIET, "max-pause: must be above 0 and at most 3600 seconds, not 0"),
        ({"max_pause": -1}, QUIET, "max-pause: must be above 0"),
        ({"max_pause": math.nan}, QUIET, "max-pause: must be above 0"),
        ({"max_pause": "short"}, QUIET, "max-pause: must be a number"),
    ],
)
def test_longest_pauses_that_are_refused(options: Any, config: Any, says: str) -> None:
    for kind in (ContinueRequest, GenerateRequest):
        with pytest.raises(UsageError, match=f"^{says}"):
            kind(**options).check(config)


def test_a_resynthesis_has_no_longest_pause() -> None:
    with pytest.raises(UsageError, match=r"^unknown key 'max-pause'"):
        ResynthRequest().updated({"max-pause": 1})


def test_what_requests_of_a_batch_share() -> None:
    first = ContinueRequest("a.wav", output="b.wav", num_samples=2, seed=3, plot="{index}.png")
    assert first.shared() == ContinueRequest("c.wav", seed=4).shared()
    assert first.shared() != ContinueRequest("a.wav", temperature=0).shared()
    assert EncodeRequest("a.wav").shared() == EncodeRequest("b.wav", output="c.safetensors").shared()
