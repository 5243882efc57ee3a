"""Outputs are complete or not there, and replace only what they may."""

import os
import stat
import subprocess
import sys

import pytest

from audiolm_cli import atomic
from audiolm_cli.errors import OutputError
from tests.helpers import ROOT


def test_an_existing_file_is_replaced_only_with_force(tmp_path):
    target = tmp_path / "a.bin"
    atomic.write(target, b"first")
    with pytest.raises(OutputError, match="exists already"):
        atomic.write(target, b"second")
    assert target.read_bytes() == b"first"
    atomic.write(target, b"third", force=True)
    assert target.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    reserve = atomic._reserve

    def somebody_else_first(part, path):
        target.write_bytes(b"theirs")
        reserve(part, path)

    monkeypatch.setattr(atomic, "_reserve", somebody_else_first)
    with pytest.raises(OutputError, match="exists already"):
        atomic.write(target, b"ours")
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(1, "not supported")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # what has the one has the other
    atomic.write(tmp_path / "a.bin", b"first")
    with pytest.raises(OutputError, match="exists already"):
        atomic.write(tmp_path / "a.bin", b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first"


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs Linux")
def test_a_killed_process_leaves_nothing_half_written(tmp_path):
    """Killed between writing and naming, in a process of its own."""
    program = "import os, sys; from audiolm_cli import atomic; os.fsync = lambda _: os.kill(os.getpid(), 9); "
    program += "atomic.write(sys.argv[1], b'x' * 1000)"
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.bin")], cwd=ROOT)
    assert result.returncode == -9
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fsync(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "a.bin", b"x" * 1000)
    assert os.listdir(tmp_path) == []


def test_the_file_has_the_usual_permissions_and_a_link_stays_one(tmp_path):
    mask = os.umask(0o027)
    try:
        atomic.write(tmp_path / "real.bin", b"1")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "real.bin").stat().st_mode) == 0o640
    os.symlink(tmp_path / "real.bin", tmp_path / "link.bin")
    atomic.write(tmp_path / "link.bin", b"2", force=True)
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"2"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkdir(tmp_path / "folder.wav")
    for target in ("/dev/full", tmp_path / "folder.wav"):
        with pytest.raises(OutputError, match="not a regular file"):
            atomic.write(target, b"x", force=True)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444, 0o755])
@pytest.mark.parametrize("nameless", [True, False])
def test_what_replaces_a_file_has_its_permissions(tmp_path, monkeypatch, mode, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = tmp_path / "a.bin"
    atomic.write(target, b"first")
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~_umask()
    target.chmod(mode)
    if os.geteuid() == 0:
        os.chown(target, 12345, 54321)
    os.utime(target, (1, 1))
    before = target.stat()
    atomic.write(target, b"second", force=True)
    after = target.stat()
    assert target.read_bytes() == b"second"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_mtime > 1e9  # it is new
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_replaces_a_private_file_is_never_open_to_others(tmp_path, monkeypatch):
    target, modes = tmp_path / "a.bin", []
    target.write_bytes(b"first")
    target.chmod(0o600)
    monkeypatch.setattr(atomic, "_like", lambda path, part: modes.append(os.stat(part).st_mode))
    atomic.write(target, b"second", force=True)
    assert [stat.S_IMODE(mode) for mode in modes] == [0o600]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
