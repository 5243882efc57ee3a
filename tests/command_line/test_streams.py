"""Standard input and output as files of any kind: pipes, terminals, full disks; and what a process imports."""

import io
import os
import subprocess
import sys

import pytest
import soundfile

from audiolm_cli.command_line import cli
from tests.helpers.processes import spawn


@pytest.mark.parametrize("output", [[], ["-o", "a.wav"], ["--out-dir", "o"]])
def test_without_names_it_is_a_filter(prompt, tmp_path, output):
    """`cat prompt.wav | audiolm continue > new.wav`"""
    process = spawn(
        *("continue", *output, "-q"),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(prompt.read_bytes(), timeout=60)
    assert (process.returncode, err) == (0, b"")
    made = io.BytesIO(out) if not output else tmp_path / out.decode().strip()
    assert soundfile.info(made).duration == 2
    assert not output or out.decode() in ("a.wav\n", "o/stdin.wav\n")


@pytest.mark.parametrize("command", ["continue", "resynth", "encode", "decode"])
@pytest.mark.parametrize("stdin", [{"stdin": subprocess.DEVNULL}, {"preexec_fn": lambda: os.close(0)}])
def test_nothing_piped_in_is_no_input(command, stdin):
    process = spawn(command, code="0", stderr=subprocess.PIPE, text=True, **stdin)
    assert "name the inputs: INPUT..., or --jobs FILE" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_no_audio_to_a_terminal(audiolm, prompt, fake, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, _, err = audiolm("continue", prompt, "-o", "-")
    assert code == 2
    assert "terminal" in err
    assert fake.loads == []


def test_stdin_and_stdout(fake, prompt, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.read_bytes())))
    assert cli.main(["continue", "-", "-o", "-", "--duration", "1"]) == 0
    samples, rate = soundfile.read(io.BytesIO(capfdbinary.readouterr().out))
    assert (rate, len(samples)) == (16000, 2 * 16000)


def test_decode_takes_tokens_from_stdin(fake, prompt, tmp_path, monkeypatch, capfdbinary):
    assert cli.main(["encode", str(prompt), "-o", "-"]) == 0
    tokens = capfdbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(tokens)))
    assert cli.main(["decode", "-", "--out-dir", str(tmp_path)]) == 0
    assert capfdbinary.readouterr().out == f"{tmp_path}/stdin.wav\n".encode()


def test_help_imports_nothing_heavy_and_not_much():
    """Whatever the machine does meanwhile; benchmarks/bench.py measures the time."""
    code = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    process = spawn("continue", "--help", code=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    imported = set(process.communicate()[1].split())
    assert not imported & {"torch", "numpy", "soundfile", "huggingface_hub", "safetensors"}
    assert "typer" in imported
    assert len(imported) < 400  # 276 with Python 3.11


@pytest.mark.slow
def test_continuing_imports_nothing_of_torchaudio(tiny_bundle, prompt, tmp_path):
    """Which takes half a second, and beside another build of torch fails."""
    code = "import atexit; atexit.register(lambda: print([name for name in sys.modules if 'torchaudio' in name]))"
    options = ("-m", tiny_bundle, "--device", "cpu", "--duration", 0.2, "--seed", 1, "-q", "-o", tmp_path / "a.wav")
    process = spawn("continue", prompt, *options, code=code, stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0].splitlines()[-1] == "[]"
    assert process.returncode == 0
    assert (tmp_path / "a.wav").is_file()


def test_a_broken_pipe_is_quiet(prompt, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = spawn(
        *("continue", prompt, "-o", tmp_path / "a.wav", "-q", "--seed", "1"),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert err == b""
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(prompt):
    with open("/dev/full", "wb") as full:
        process = spawn(
            *("continue", prompt, "-o", "-", "-q", "--seed", "1"),
            stdout=full,
            stderr=subprocess.PIPE,
        )
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.splitlines() == [b"audiolm: error: standard output: cannot be written: No space left on device"]
