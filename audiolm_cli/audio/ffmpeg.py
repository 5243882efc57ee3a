"""Decodes formats that libsndfile does not know, such as M4A, WebM and WMA, with ffmpeg if it is installed.

ffmpeg is not trusted: it runs without a shell, reads only the open file, and is stopped when it takes too long.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import IO

import numpy as np

from audiolm_cli.errors import InputError

SILENT_SECONDS = 30.0  # without output, after which ffmpeg is stopped
TOTAL_SECONDS = 600.0  # of work on one file
MAX_MEMORY = 4 * 2**30  # bytes of address space
MAX_HEADER = 2**20  # bytes before the first sample
MAX_CHANNELS = 1024  # libsndfile's limit
INSTALL = "ffmpeg would read M4A, WebM, WMA and more: install it, for instance with: apt install ffmpeg"

# ffmpeg's names of formats that hold audio and refer to no other file, unlike playlists, concat, hls, dash, sdp and
# image sequences. All others are refused, whatever a newer ffmpeg supports.
FORMATS = (
    "3gp,aac,ac3,adx,aiff,aix,amr,amrnb,amrwb,ape,aptx,asf,asf_o,ast,au,avi,caf,codec2,dsf,dts,dtshd,dv,eac3,flac,"
    "flv,g723_1,g729,gsm,gxf,iamf,iff,ircam,kux,loas,m4a,matroska,mlp,mmf,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,"
    "nistsphere,nut,ogg,oma,paf,pvf,qcp,rm,rso,sbc,shn,smjpeg,sox,spdif,tak,truehd,tta,voc,vqf,w64,wav,webm,wsd,wtv,wv,"
    "xwma"
)
OPTIONS = (
    *("-hide_banner", "-nostdin", "-v", "error", "-threads", "1", "-max_alloc", str(2**28)),
    *("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS),
)
TO_WAV = ("-map", "0:a:0", "-vn", "-sn", "-dn", "-c:a", "pcm_f32le", "-bitexact", "-f", "wav", "pipe:1")
TAGS = {b"INAM": "title", b"IART": "artist", b"ICMT": "comment", b"ICOP": "copyright", b"ISFT": "software"}


class FfmpegDecoder:
    """The first audio stream of a file: `samplerate` (Hz), `channels`, `tags`, and samples from `blocks`.

    A context manager that ends ffmpeg on exit. Raises InputError, with `name` in the message, if ffmpeg is not
    installed, cannot decode the file, or takes too long.
    """

    length = 0  # in frames, unknown

    def __init__(self, file: IO[bytes], name: str):
        self.name, self.complaint = name, ""  # about audio that was decoded all the same
        program = shutil.which("ffmpeg")
        if program is None:
            raise InputError(f"{name}: not audio that libsndfile can read; {INSTALL}")
        descriptor = file.fileno()
        os.lseek(descriptor, 0, os.SEEK_SET)  # on some systems /dev/fd/N shares the position
        command = [program, *OPTIONS, "-i", f"file:/dev/fd/{descriptor}", *TO_WAV]
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"{name}: ffmpeg cannot be started: {error.strerror}") from None
        try:
            _limit(self.process.pid)
            self.said = b""
            self.received = self._received()
            self.rest = b""
            self._read_header()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> FfmpegDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # and whatever a wrapper around ffmpeg started
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()

    def blocks(self, skipped: int = 0) -> Iterator[np.ndarray]:
        """The samples, float32 [n, channels]; can be called once."""
        assert not skipped
        size = 4 * self.channels
        while data := self._take(size):
            if whole := len(data) // size * size:
                yield np.frombuffer(data[:whole], "<f4").reshape(-1, self.channels)
            self.rest = data[whole:] + self.rest
            if not whole:
                break
        if why := self._complaint():
            self.complaint = f"the file is damaged ({why})"

    def _read_header(self) -> None:
        """Reads the header of the WAV that ffmpeg writes, up to the samples."""
        self.samplerate = self.channels = 0
        self.tags: dict[str, str] = {}
        if self._exactly(12)[:4] != b"RIFF":
            raise self._refusal()
        budget = MAX_HEADER
        while (chunk := self._exactly(8))[:4] != b"data":
            size = int.from_bytes(chunk[4:], "little")
            budget -= size + 8
            if budget < 0:
                raise self._refusal()
            body = self._exactly(size + size % 2)
            if chunk[:4] == b"fmt " and size >= 16:
                _, self.channels, self.samplerate = struct.unpack("<HHI", body[:8])
            elif chunk[:4] == b"LIST":
                self.tags = _tags(body)
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise self._refusal()

    def _exactly(self, count: int) -> bytes:
        data = self._take(count)
        if len(data) < count:
            raise self._refusal()
        self.rest = data[count:] + self.rest
        return data[:count]

    def _take(self, least: int) -> bytes:
        """At least that many bytes of ffmpeg's output, fewer at its end."""
        data, self.rest = self.rest, b""
        while len(data) < least and (more := next(self.received, b"")):
            data += more
        return data

    def _received(self) -> Iterator[bytes]:
        """ffmpeg's standard output as it arrives; the beginning of its messages is kept in `said`."""
        out, messages = self.process.stdout, self.process.stderr
        assert out is not None
        assert messages is not None
        start = heard = time.monotonic()
        open_pipes = [out, messages]
        while open_pipes:
            until = min(heard + SILENT_SECONDS, start + TOTAL_SECONDS)
            ready, _, _ = select.select(open_pipes, [], [], max(0.0, until - time.monotonic()))
            for pipe in ready:
                data = os.read(pipe.fileno(), 2**16)
                if not data:
                    open_pipes.remove(pipe)
                elif pipe is messages:
                    self.said = (self.said + data)[:4000]
                else:
                    yield data
                    heard = time.monotonic()  # the consumer's time does not count
            now = time.monotonic()
            if not ready or now >= heard + SILENT_SECONDS or now >= start + TOTAL_SECONDS:
                raise InputError(f"{self.name}: ffmpeg takes too long over it and was stopped")
        # ffmpeg may still run after closing its pipes
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SILENT_SECONDS)

    def _complaint(self) -> str:
        """The first line of ffmpeg's messages, or its exit code; empty if all went well."""
        lines = [_plain(line) for line in self.said.decode(errors="replace").splitlines()]
        first = next((line for line in lines if line), "")
        code = self.process.poll()
        return first or (f"it ended with exit code {code}" if code else "")

    def _refusal(self) -> InputError:
        for _ in itertools.islice(self.received, 16):  # to the end, if it is near: the message comes last
            pass
        why = self._complaint() or "no sound comes out"
        return InputError(f"{self.name}: not audio that libsndfile or ffmpeg can read ({why})")


def _limit(process: int) -> None:
    """Limits the memory and processor time of a process, where the system supports that (Linux)."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        resource.prlimit(process, resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.prlimit(process, resource.RLIMIT_CPU, (round(TOTAL_SECONDS), round(TOTAL_SECONDS)))


def _plain(line: str) -> str:
    """A message without memory addresses, the file's name and the list of FORMATS; printable, short."""
    line = re.sub(r"^(\[[^\]]* @ 0x[0-9a-f]+\] ?)+|file:/dev/fd/\d+: ?|(?<=on whitelist) .*", "", line)
    return "".join(c if c.isprintable() else " " for c in line).strip()[:200]


def _tags(body: bytes) -> dict[str, str]:
    """The tags in a WAV file's LIST chunk, under libsndfile's names."""
    found, place = {}, 4
    while body[:4] == b"INFO" and place + 8 <= len(body):
        key, size = struct.unpack("<4sI", body[place : place + 8])
        if key in TAGS:
            found[TAGS[key]] = body[place + 8 : place + 8 + size].rstrip(b"\0").decode(errors="replace")
        place += 8 + size + size % 2
    return found
