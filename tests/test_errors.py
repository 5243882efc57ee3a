import pytest

from audiolm_cli import errors


@pytest.mark.parametrize(
    ("name", "code"), [("UsageError", 2), ("InputError", 1), ("OutputError", 1), ("ModelError", 1)]
)
def test_exit_codes(name, code):
    error = getattr(errors, name)
    assert issubclass(error, errors.AudioLMError)
    assert error.exit_code == code


def test_a_name_is_shown_in_one_printable_line():
    assert errors.display("-") == "standard input"
    assert errors.display("dir/Müller 1.wav") == "dir/Müller 1.wav"
    assert errors.display("a\nb\x1b[2J.wav") == r"'a\nb\x1b[2J.wav'"
    assert errors.display("a\udcff.wav") == r"'a\udcff.wav'"
