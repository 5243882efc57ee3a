"""Where sound is from: the metadata and the watermark that outputs get, and what `audiolm detect` finds in a file."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from audiolm_cli import __version__
from audiolm_cli.audio import files
from audiolm_cli.audio.files import Recording
from audiolm_cli.console import Progress, counted
from audiolm_cli.errors import display
from audiolm_cli.provenance import watermark

if TYPE_CHECKING:
    from audiolm_cli.backend import Backend
    from audiolm_cli.bundles.bundle import Bundle

GENERATED = "trainedAlgorithmicMedia"  # IPTC digital source type: made by a model trained on media


def tags(bundle: Backend, **made_with: Any) -> dict[str, str]:
    """Metadata that says what made an audio file; the comment is ASCII JSON, well under 1 kB."""
    comment = {"bundle": bundle.config.name[:64], "identity": bundle.identity, **made_with}
    return {
        "software": f"audiolm {__version__}",
        "comment": json.dumps({**comment, "digitalSourceType": GENERATED}, separators=(",", ":")),
    }


class Examiner:
    """Finds out where files are from, by the classifier of the bundle `model`; where none is named, by that of the
    embedded one whose watermark a file has, else of `speech`."""

    def __init__(self, model: str | None, device: str = "auto", offline: bool = False, threads: int | None = None):
        import torch

        from audiolm_cli.bundles import bundle

        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model
        self.load = functools.cache(functools.partial(bundle.load, device=device, dtype="float32", offline=offline))

    def examine(self, path: str, progress: Progress | None = None) -> dict[str, Any]:
        """What is found in a file, as `audiolm detect --json` says it. Raises InputError, ModelError, UsageError."""
        tell = counted(progress, "read", 1)
        recording = files.read(path, watermark.RATE)
        tell(1)
        return self.found(recording, path, progress)

    def found(self, recording: Recording, path: str | None, progress: Progress | None = None) -> dict[str, Any]:
        """The same of a recording at `watermark.RATE`."""
        return found(recording, path, lambda maker: self.load(self.model or maker or "speech"), progress)


def found(
    recording: Recording, path: str | None, load: Callable[[str | None], Bundle], progress: Progress | None = None
) -> dict[str, Any]:
    """What `Examiner.examine` says of a recording at `watermark.RATE`, by the classifier of the bundle that `load` has
    for the embedded one, if any, whose watermark is there."""
    from audiolm_cli import detector
    from audiolm_cli.bundles import catalogue

    tell = counted(progress, "search", 1)
    marks, confidence = watermark.search(recording.samples)
    tell(1)
    clearest = max(marks, key=lambda mark: mark.confidence, default=None)
    names = {watermark.bundle_id(name): name for name in catalogue.embedded()}
    maker = names.get(clearest.bundle) if clearest else None
    bundle = load(maker)
    judgement = None
    if bundle.detector is not None:
        samples = files.resampled(recording.samples, recording.rate, bundle.config.tokens.sample_rate)
        judgement = detector.judge(bundle, samples, progress)
    return {
        "path": path,
        "seconds": len(recording.samples) / recording.rate,
        "watermark": clearest is not None,
        "watermark_bits": watermark.bits(clearest.bundle) if clearest else None,
        "watermark_bundle": maker,
        "watermark_confidence": confidence,
        "generated_probability": judgement.probability if judgement else None,
        "classifier": bundle.config.name if judgement else None,
        "segments": [
            *({"by": "watermark", **mark._asdict(), "bundle": names.get(mark.bundle)} for mark in marks),
            *({"by": "classifier", "start": s, "end": e} for s, e in (judgement.segments if judgement else [])),
        ],
        "metadata": metadata(recording),
        "notes": recording.notes,
    }


def metadata(recording: Recording) -> dict[str, Any] | None:
    """A file's tags, the comment as an object where it is one in JSON; None without tags."""
    found: dict[str, Any] = dict(recording.tags)
    with contextlib.suppress(ValueError, RecursionError):
        comment = json.loads(found.get("comment", ""))
        if isinstance(comment, dict):
            found["comment"] = comment
    return found or None


def described(found: dict[str, Any]) -> str:
    """What `examine` found, in a line for people."""

    def places(by: str) -> str:
        listed = [f"{s['start']:.1f}-{s['end']:.1f} s" for s in found["segments"] if s["by"] == by]
        return f" at {', '.join(listed)}" if listed else ""

    mark, probability, tags = "no watermark", found["generated_probability"], found["metadata"] or {}
    if found["watermark"]:
        maker = f"the bundle {found['watermark_bundle']}" if found["watermark_bundle"] else "another bundle"
        mark = f"watermark of {maker}{places('watermark')}"
    sound = "too little sound to tell" if found["classifier"] else "no classifier"
    if probability is not None:
        sound = f"{probability:.0%} likely generated by its sound{places('classifier')}"
    comment = tags.get("comment")
    said = "metadata without a word of it" if tags else "no metadata"
    if isinstance(comment, dict) and comment.get("digitalSourceType") == GENERATED:
        maker = f"{tags.get('software')}, bundle {comment.get('bundle')}, seed {comment.get('seed')}"
        said = f"metadata: {display(maker[:200])}"  # which anybody can write into a file
    return f"{display(found['path'])}: {mark}; {sound}; {said}"
