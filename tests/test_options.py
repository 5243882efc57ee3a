"""One check for what the command line and job lists ask for."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_cli.command_line.options import CHECKS, Options, Request, checked, read_jobs
from audiolm_cli.errors import UsageError

KEYS = ("plot", "duration", "temperature", "num_samples", "seed", "continuation_only", "output")
DEFAULTS = {"duration": 7.0, "seed": 1}


def read(*lines: str, takes_input: bool = True) -> list[Request]:
    keys = [*KEYS, "input"] if takes_input else KEYS
    return read_jobs([os.fsencode(line) for line in lines], "jobs.jsonl", keys, DEFAULTS, takes_input)


def test_lines_override_the_defaults() -> None:
    first, second = read(
        '{"input": "a.wav"}',
        "",
        '{"input": "b.wav", "output": "c.wav", "duration": 2, "temperature": [1, 0.8, "0.5"], "num-samples": 3}',
    )
    assert first == Request("a.wav", None, 1, Options(duration=7.0, seed=1))
    assert second == Request("b.wav", "c.wav", 3, Options(duration=2.0, seed=1, temperature=(1.0, 0.8, 0.5)))


def test_a_command_without_inputs() -> None:
    assert read('{"duration": 1}', takes_input=False)[0].source is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("\xff", "not JSON"),
        ("{\udcff}", "not UTF-8"),
        ('{"input": "a.wav", "modle": "x"}', "unknown key 'modle'; known are continuation-only, duration, input"),
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


@given(st.sampled_from(sorted(CHECKS)), json_values)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: object) -> None:
    try:
        checked({name: value})
    except UsageError as error:
        assert "\n" not in str(error).replace(json.dumps(value), "")


def test_the_same_check_for_text_and_numbers() -> None:
    assert checked({"top_k": "10,0,3"}) == checked({"top_k": [10, 0, 3]}) == {"top_k": (10, 0, 3)}
    assert checked({"duration": "2.5"}) == checked({"duration": 2.5})
    assert checked({"top_p": 1}) == {"top_p": (1.0, 1.0, 1.0)}
    assert checked({"seed": None}) == {"seed": None}
