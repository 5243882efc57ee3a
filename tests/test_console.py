import io
import itertools
import json
import sys
import types

import pytest

from audiolm_cli import console as console_module
from audiolm_cli.console import Console
from audiolm_cli.errors import OutputError


def test_results_are_paths_or_json_lines(capfdbinary):
    Console().result({"path": "a b\udcff.wav", "peak": 0.5})
    Console(json=True).result({"path": "ä\n.wav", "peak": 0.5})
    Console(json=True).result({"path": "-"})
    first, second = capfdbinary.readouterr().out.splitlines()
    assert first == b"a b\xff.wav"
    assert json.loads(second) == {"path": "ä\n.wav", "peak": 0.5}
    assert second.isascii()


def test_notes_are_silent_when_quiet_and_errors_are_not(capfd):
    console = Console(quiet=True)
    console.note("note")
    console.error("bad")
    assert capfd.readouterr().err == "audiolm: error: bad\n"


def test_no_progress_without_a_terminal(capfd):
    with Console().progress(1.0) as show:
        assert show is None


def on_terminal(monkeypatch):
    """What is written to stderr from now on, as if that were one."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_a_terminal_sees_what_is_being_done(monkeypatch):
    console, terminal = Console(), on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "24")
    with console.status("reading\na file of a long name"):
        console.note("a note")
    assert terminal.getvalue().split("\r\x1b[2K") == [
        "audiolm: reading a file",
        "audiolm: a note\naudiolm: reading a file",
        "",
    ]
    console.note("another")
    assert terminal.getvalue().endswith("\x1b[2Kaudiolm: another\n")


def test_nobody_else_does(monkeypatch, capfd):
    terminal = on_terminal(monkeypatch)
    with Console(quiet=True).status("reading"):
        pass
    monkeypatch.setenv("TERM", "dumb")
    with Console().status("reading"):
        pass
    assert terminal.getvalue() == ""
    monkeypatch.undo()
    with Console().status("reading"):
        pass
    assert capfd.readouterr().err == ""


def test_progress_on_a_terminal(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with Console(quiet=True).progress(1.0) as show:
        assert show is None
    ticks = itertools.count(100.0, 0.01)
    monkeypatch.setattr(console_module, "time", types.SimpleNamespace(monotonic=lambda: next(ticks)))
    with Console(overall=(4, 10, 0.0)).progress(7.0) as show:
        assert show is not None
        show("semantic", 0, 175)
        show("semantic", 100, 175)
        show("coarse", 1, 1400)
        show("decode", 500, 500)
    text = terminal.getvalue()
    assert "4/10 outputs" in text
    assert "2:30 left" in text
    assert "57 %" in text
    assert "0:00 left" in text  # of the 75 tokens behind 100
    assert "semantic" in text
    assert "tokens/s" in text
    assert "frames/s" in text
    assert "real-time factor" in text
    assert "coarse" in text


def test_closed_standard_streams(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    Console().error("nobody hears this")
    monkeypatch.setattr(sys, "__stdout__", None)
    with pytest.raises(OutputError, match="closed"):
        console_module.write_stdout(b"x")


def test_the_time_left_is_known_without_stages(monkeypatch):
    """On a cluster nobody tells of them."""
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(console_module, "time", types.SimpleNamespace(monotonic=lambda: 100.0))
    with Console(overall=(4, 10, 0.0)).progress(0):
        pass
    assert "2:30 left" in terminal.getvalue()


def test_an_interrupt_is_summed_up(capfd):
    console = Console(overall=(3, 5, 0.0), rest="; more")
    console.result({"path": "-"})
    console.interrupted()
    Console().interrupted()  # before anything was asked for
    Console(overall=(3, 5, 0.0), quiet=True).interrupted()
    assert capfd.readouterr().err == "audiolm: interrupted: 1 of 5 outputs are done; more\n"
