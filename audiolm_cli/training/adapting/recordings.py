"""Prepares recordings for training: lists and decodes them, cuts them into stretches, and splits these by time.

Usable stretches go into one array of samples on disk, as a list of training clips and one of validation clips: the
last tenth of each recording's stretches. Recordings with less than a minute of usable audio are split together, in the
order of their names. No stretch is in both lists, and cuts lie in pauses, so the lists share no sound.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_cli.audio import files
from audiolm_cli.errors import InputError, UsageError, display
from audiolm_cli.training.adapting.stretches import Stretch, cut
from audiolm_cli.training.corpora.data import Clip, Corpus

SUFFIXES = (  # of recordings in a folder
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv"),
    *(".mov", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".tta", ".voc", ".w64"),
    *(".wav", ".webm", ".wma", ".wv"),
)
CHUNK = 120.0  # s cut at a time
OWN = 60.0  # usable s from which a recording is split by itself
HELD_OUT, LEAST_HELD_OUT = 0.1, 20.0  # share for validation, and its least s in all
REASONS = {  # for which nothing of a recording is used
    "silent": "not a second of sound in it",
    "clipped": "clipped",
    "noisy": "noisy",
    "music": "it sounds like music",
}
BAND, AUDIBLE = 16, 60.0  # bins of 16 Hz; dB that a band of so many lies below the strongest, at most, to count


@dataclass(frozen=True)
class Source:
    """A file, and its speaker if a manifest names one."""

    path: str
    speaker: str = ""


@dataclass
class Report:
    """Statistics of the recordings: their number, and seconds by `Stretch.fate`; level (dBFS) and bandwidth (Hz) of the
    usable part; seconds for training and for validation; notes, and a line for each `unreadable` file; how many were
    `unread`, at least in part, because the time was over."""

    recordings: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    level: float = -math.inf
    bandwidth: float = 0.0
    speakers: int = 0
    training: float = 0.0
    validation: float = 0.0
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unread: int = 0

    @property
    def usable(self) -> float:
        return self.seconds.get("usable", 0.0)

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        minutes = {fate: seconds / 60 for fate, seconds in self.seconds.items()}
        yield f"{self.recordings} recording{'s' * (self.recordings != 1)}, {shares(minutes)}"
        if self.unread:
            yield f"not read, or not to the end, to keep to the time: {self.unread} recording{'s' * (self.unread != 1)}"
        if self.usable:
            who = f", {self.speakers} speakers" if self.speakers else ""
            yield f"level {self.level:.0f} dBFS, bandwidth {self.bandwidth / 1000:.1f} kHz{who}"


def listed(given: Sequence[str]) -> list[Source]:
    """The recordings in files and folders, in order, without duplicates. A folder stands for the files that its
    manifest.tsv lists for training, or without a manifest for all files in it with a suffix of SUFFIXES.

    Raises InputError if there are none, UsageError for standard input.
    """
    found: dict[Path, Source] = {}
    for name in given:
        if name == "-":
            raise UsageError("standard input: recordings to train on must be files, so that training can be resumed")
        place = Path(name)
        sources: Iterable[Source] = [Source(name)]
        if (place / "manifest.tsv").is_file():
            sources = _of_manifest(place)
        elif place.is_dir():
            inside = sorted(file for file in place.rglob("*") if not _hidden(file.relative_to(place)))
            sources = [Source(str(f)) for f in inside if f.suffix.lower() in SUFFIXES and f.is_file()]
        for source in sources:
            found.setdefault(Path(source.path).resolve(), source)
    if not found:
        raise InputError(f"{', '.join(map(display, given))}: no recordings there")
    return list(found.values())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _of_manifest(folder: Path) -> Iterator[Source]:
    """The files that a manifest.tsv lists for the split `train`, or without a split."""
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if not row.get("path"):
                raise InputError(f"{display(folder / 'manifest.tsv')}: has no column `path`, or a row without one")
            if (row.get("split") or "train") == "train":
                yield Source(str(folder / row["path"]), row.get("speaker") or "")


def gather(
    sources: Sequence[Source],
    folder: Path,
    rate: int,
    speech: bool,
    most: float,
    tell: Callable[[str, float], None],
    enough: Callable[[float], bool] = lambda usable: False,
) -> tuple[Report, dict[str, list[Clip]]]:
    """Writes up to `most` seconds of usable audio into `folder`; returns the report and the clips of `train` and
    `valid`. `tell` gets the file being read and the share done. Once `enough` is true of the usable seconds, the
    rest is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    report, kept, spectrum = Report(), list[Clip](), np.zeros(rate // 32 + 1)
    offset = 0
    with (folder / "samples.int16").open("wb") as out:
        for number, source in enumerate(sources):
            tell(source.path, number / len(sources))
            if enough(report.usable):
                report.unread += len(sources) - number
                break
            try:
                samples = _read(source.path, folder / "recording.int16", rate, report)
            except InputError as error:
                report.unreadable.append(str(error))
                continue
            report.recordings += 1
            own = Counter[str]()
            for first, last, fate in stretches(samples, rate, speech):
                own[fate] += last - first
                if fate == "usable":
                    part = samples[first:last]
                    spectrum += _spectrum(part, rate)
                    out.write(part.tobytes())
                    name = f"{number:06}/{first:012}"
                    kept.append(Clip(name, source.speaker, "", "", offset, last - first))
                    offset += last - first
                if enough(report.usable + own["usable"] / rate):
                    samples = samples[:last]
                    report.unread += 1
                    break
            own["silent"] = len(samples) - own.total()
            if not own["usable"]:
                report.notes.append(f"{display(source.path)}: left out: {REASONS[own.most_common(1)[0][0]]}")
            for each, count in own.items():
                report.seconds[each] += count / rate
            del samples
    (folder / "recording.int16").unlink(missing_ok=True)
    if report.usable:
        report.level, report.bandwidth = _loudness(spectrum, report.usable), _bandwidth(spectrum, rate)
    report.speakers = len({clip.speaker for clip in kept if clip.speaker})
    clips = split(spread(kept, most * rate), rate)
    report.training, report.validation = (sum(c.samples for c in clips[name]) / rate for name in ("train", "valid"))
    return report, clips


def corpus(folder: Path, clips: list[Clip]) -> Corpus:
    """Clips of the audio that `gather` wrote."""
    return Corpus(np.memmap(folder / "samples.int16", np.int16, "r"), clips)


def stretches(samples: np.ndarray, rate: int, speech: bool) -> Iterator[Stretch]:
    """Cuts a recording int16 `[T]` of any length into stretches, chunk by chunk."""
    start = 0
    while start < len(samples):
        end = min(len(samples), start + round(CHUNK * rate))
        found = cut(samples[start:end].astype(np.float32) / 32768, rate, speech)
        if end < len(samples) and len(found) > 1:  # the last one may go on in the next chunk
            end = start + found.pop().first
        for first, last, fate in found:
            yield Stretch(start + first, start + last, fate)
        start = end


def spread(clips: list[Clip], most: float) -> list[Clip]:
    """Selects clips of `most` samples in total, spread evenly."""
    share = most / max(1, sum(clip.samples for clip in clips))
    return [clip for n, clip in enumerate(clips) if share >= 1 or int((n + 1) * share) > int(n * share)]


def split(clips: list[Clip], rate: int) -> dict[str, list[Clip]]:
    """Splits clips in order: the first ones are `train`, the last ones `valid`."""
    lengths: Counter[str] = Counter()
    for clip in clips:
        lengths[clip.path[:6]] += clip.samples
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        own = clip.path[:6] if lengths[clip.path[:6]] >= OWN * rate else ""
        groups.setdefault(own, []).append(clip)
    share = max(HELD_OUT, LEAST_HELD_OUT * rate / max(1, lengths.total()))
    found: dict[str, list[Clip]] = {"train": [], "valid": []}
    for group in groups.values():
        wanted, place = share * sum(clip.samples for clip in group), len(group)
        while wanted > 0 and place > 1:
            place -= 1
            wanted -= group[place].samples
        found["train"] += group[:place]
        found["valid"] += group[place:]
    return found


def _read(path: str, copy: Path, rate: int, report: Report) -> np.ndarray:
    """Reads a recording as int16 `[T]`, mapped from a file."""
    with copy.open("wb") as file:
        notes = files.unpack(path, rate, file)
    report.notes += [f"{display(path)}: {note}" for note in notes if "used" in note or "full scale" in note]
    return np.memmap(copy, np.int16, "r") if copy.stat().st_size else np.zeros(0, np.int16)


def _spectrum(samples: np.ndarray, rate: int) -> np.ndarray:
    """Energy by frequency, from windows of 1/16 s."""
    size = rate // 16
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float32) / 32768 * np.hanning(size)
    return np.asarray(np.square(np.abs(np.fft.rfft(frames))).sum(0))


def _loudness(spectrum: np.ndarray, seconds: float) -> float:
    """Level in dBFS, from the summed energies of windows."""
    size = 2 * (len(spectrum) - 1)
    return 10 * math.log10(2 * spectrum.sum() / (size**2 * 0.375 * seconds * 16) + 1e-10)


def _bandwidth(spectrum: np.ndarray, rate: int) -> float:
    """The upper edge, in Hz, of the highest audible band."""
    bands = np.add.reduceat(spectrum, edges := np.arange(0, len(spectrum) - 1, BAND))
    there = np.flatnonzero(bands > bands.max() * 10 ** (-AUDIBLE / 10))
    return float(min(rate / 2, (edges[there[-1]] + BAND) * 16))


def shares(minutes: Mapping[str, float]) -> str:
    """Minutes by fate, in words."""
    usable = f"{minutes.get('usable', 0.0):.1f} usable"
    some = [f"{value:.1f} {fate}" for fate, value in minutes.items() if fate != "usable" and value >= 0.05]
    return f"{sum(minutes.values()):.1f} minutes: {', '.join([usable, *some])}"


def as_json(report: Report) -> dict[str, Any]:
    """The report as a bundle and --json keep it."""
    minutes = {fate: round(seconds / 60, 2) for fate, seconds in report.seconds.items()}
    return {
        "recordings": report.recordings,
        "minutes": minutes,
        "level_dbfs": round(report.level, 1),
        "bandwidth_hz": report.bandwidth,
        "speakers": report.speakers or None,
        "training_minutes": round(report.training / 60, 2),
        "validation_minutes": round(report.validation / 60, 2),
    }
