"""`audiolm train`: fine-tunes a bundle on recordings of one voice, or one piano.

    recordings --cut at pauses, checked, split by time--> stretches --the bundle's tokenizer and codec--> tokens
               --> LoRA adapters of coarse and fine stage, merged; the codec's decoder --> new bundle, model card,
                   samples before and after

Tokenizer, encoder and codebooks are frozen, so tokens mean the same in both bundles. The results of
finished steps stay in a folder beside the new bundle until it is complete.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file

from audiolm_cli import api
from audiolm_cli.bundles import catalogue
from audiolm_cli.bundles.bundle import check_parts, pick_device, read_about, write_tensors
from audiolm_cli.bundles.folder import check_sums, read_config
from audiolm_cli.config import BundleConfig
from audiolm_cli.console import Console
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.fields import to_json
from audiolm_cli.language_models.tokens import StageName
from audiolm_cli.provenance import watermark
from audiolm_cli.training.adapting import decoder, fitting, recordings, stages, tokens
from audiolm_cli.training.adapting.card import CONSENT, UNITS, SourceBundle, card
from audiolm_cli.training.adapting.reporter import Reporter
from audiolm_cli.training.adapting.work import Work, check_place, put
from audiolm_cli.training.corpora.data import Clip
from audiolm_cli.training.evaluation import curves
from audiolm_cli.training.parts.assemble import SETTINGS, assemble, unpack, write_sums

LEAST = 120.0  # s of usable recordings
HEARD_SHARE, HEARD_LEAST = 3.0, 10.0  # train on at most 3 x the training time of recordings, or on 10 minutes if more
SHARES = {"semantic": 0.3, "coarse": 0.7, "fine": 0.3, "decoder": 0.3}  # of the time for training, in order
SAMPLES, SAMPLE_SECONDS = 3, 5.0
# shares of the time after which no more recordings are read, if there are 10 minutes, or if there is the least
READING = 0.2, 0.4
NARROW = 0.75  # share of the bundle's bandwidth; recordings below it get a note


@dataclass(frozen=True)
class Options:
    """The options of `audiolm train`. `steps` of each part, if any, replace `minutes`."""

    recordings: Sequence[str]
    output: str
    source: str = "speech"
    name: str | None = None
    minutes: float = 20.0
    steps: int = 0
    semantic: bool = False
    decoder: bool = False
    seed: int = 0
    force: bool = False
    device: str = "auto"
    threads: int | None = None  # all cores but one
    offline: bool = False
    least: float = LEAST


def adapt(options: Options, console: Console) -> dict[str, Any]:
    """Trains the bundle, or resumes training it, and returns the record that --json prints.

    Raises OutputError if it cannot be written there, InputError for too few recordings, ModelError, UsageError.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(f"train: needs torch 2.9 or newer, not {torch.__version__}: pip install 'audiolm[train]'")
    torch.set_num_threads(options.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    source, out = catalogue.find(options.source, options.offline, console.hearer), Path(options.output)
    if out.name in ("", os.pardir):
        out = out.resolve()
    check_place(out, source, options.force)
    device = str(pick_device(options.device))
    config, found = read_config(source), recordings.listed(options.recordings)
    identity = hashlib.sha256((source / "SHA256SUMS").read_bytes()).hexdigest()
    asked = {
        "recordings": [_stamp(item) for item in found],
        "bundle": identity,
        "options": [
            *(options.name or out.name, options.minutes, options.steps, options.semantic, options.decoder),
            options.seed,
        ],
    }
    with Work(out, asked, options.force) as work:
        run = _Run(options, config, source, work, device)
        try:
            with Reporter(console, run.share, run.left) as run.reporter:
                return run.run(found, identity, out)
        except KeyboardInterrupt:
            console.note("interrupted: the same command resumes")
            raise


class _Run:
    """One run of a training; `work` holds the results of finished steps."""

    reporter: Reporter

    def __init__(self, options: Options, config: BundleConfig, source: Path, work: Work, device: str):
        self.options, self.config, self.source, self.work, self.device = options, config, source, work, device
        wanted = {"semantic": options.semantic, "coarse": True, "fine": config.fine, "decoder": options.decoder}
        self.names = [name for name in SHARES if wanted[name]]  # of what is trained
        self.progress = 0.0  # of the trainings

    def share(self) -> float:
        """The share done, 0 to 1."""
        return self.progress if self.options.steps else self.work.seconds / (60 * self.options.minutes)

    def left(self) -> float | None:
        """Seconds left."""
        return None if self.options.steps else 60 * self.options.minutes - self.work.seconds

    def _used(self) -> float:
        """The share of the time that is over, where time matters."""
        return 0.0 if self.options.steps else self.share()

    def run(self, found: Sequence[recordings.Source], identity: str, out: Path) -> dict[str, Any]:
        """Runs all steps that are not finished."""
        work, say, folder = self.work, self.reporter.say, self.work.folder
        if not work.fresh:
            say(f"resuming after {work.seconds / 60:.1f} minutes")
        report, clips, unreadable = self._gathered(found)
        self.reporter.doing("unpacking the bundle")
        work.once("parts", lambda: unpack(self.source, folder / "parts"))
        self.reporter.doing("tokens")
        work.once("tokens", lambda: tokens.tokenize(folder, clips, self.device, self._told("tokens"), self._used))
        prompts = self._prompts(clips["valid"])
        work.once("before", lambda: self._sampled(self.source, prompts, "before"))
        results = {part: self._adapted(part, clips) for part in self.names}
        self.reporter.doing("the bundle")
        asked, made = self.options.name or out.name, folder / "bundle"
        if (name := own_name(asked, self.config.name)) != asked:
            say(f"the bundle's name is {name}: that of {asked} would have another bundle's watermark")
        self._assembled(made, name, report, identity)
        self._sampled(made, prompts, "after")
        self._carded(made, name, report, results, identity)
        record = {
            "path": str(self.options.output),
            "name": name,
            "from": self.config.name,
            "from_identity": identity,
            "watermark_bits": watermark.bits(watermark.bundle_id(name)),
            "recordings": report,
            "unreadable": unreadable,
            "stages": {part: result for part, result in results.items() if part != "decoder"},
            "decoder": results.get("decoder"),
            "seconds": round(work.seconds, 1),
        }
        check_place(out, self.source, self.options.force)  # again: something may have been created there meanwhile
        put(made, out, folder / "replaced")
        work.remove()
        return record

    def _gathered(self, found: Sequence[recordings.Source]) -> tuple[dict[str, Any], dict[str, list[Clip]], list[str]]:
        """The report on the recordings, their clips, and a message for each unreadable file. Raises InputError if there
        is too little usable audio."""
        say, options = self.reporter.say, self.options

        def gather() -> dict[str, Any]:
            rate, speech = self.config.tokens.sample_rate, self.config.domain == "speech"
            most = 60 * max(HEARD_LEAST, HEARD_SHARE * options.minutes)
            audio = self.work.folder / "audio"

            def enough(usable: float) -> bool:
                plenty, least = READING
                return self._used() > (plenty if usable >= 60 * HEARD_LEAST else least) and usable >= options.least

            report, clips = recordings.gather(found, audio, rate, speech, most, self._told("reading"), enough)
            for line in [*report.notes[:5], *report.lines()]:
                say(line)
            if len(report.notes) > 5:
                say(f"and {len(report.notes) - 5} notes more")
            for message in report.unreadable:
                self.reporter.console.error(message)
            if report.usable < options.least or not clips["valid"]:
                self.work.remove()
                if not report.recordings:
                    raise InputError(report.unreadable[0])
                needed = f"at least {options.least / 60:g} are needed"
                raise InputError(f"{report.usable / 60:.1f} minutes of usable recordings: {needed}")
            if report.bandwidth < NARROW * rate / 2:
                say("the recordings have little bandwidth, and so will the bundle's outputs")
            unused = report.usable - report.training - report.validation
            learn, held = report.training / 60, report.validation / 60
            more = f"; {unused / 60:.0f} more than {options.minutes:g} minutes can use" if unused > 60 else ""
            say(f"{learn:.1f} minutes for training, {held:.1f} from the recordings' ends for validation{more}")
            say(CONSENT)
            kept = {split: [dataclasses.asdict(clip) for clip in some] for split, some in clips.items()}
            return {"report": recordings.as_json(report), "clips": kept, "unreadable": report.unreadable}

        gave = self.work.once("recordings", gather)
        clips = {split: [Clip(**clip) for clip in some] for split, some in gave["clips"].items()}
        return gave["report"], clips, gave["unreadable"]

    def _told(self, doing: str) -> Callable[..., None]:
        """A callback for a step's progress."""

        def tell(*told: float) -> None:
            self.work.tick()
            self.reporter.doing(f"{doing}, {told[-1]:.0%}")

        return tell

    def _adapted(self, name: str, clips: dict[str, list[Clip]]) -> dict[str, Any]:
        """Adapts a stage or the decoder; returns a `fitting.FittingResult` as JSON."""
        result: dict[str, Any] = self.work.once(name, functools.partial(self._trained, name, clips))
        change = "improved: kept" if result["kept"] else "no improvement: left unchanged"
        self.reporter.say(f"{name}: {result['before']:.3f} {UNITS[name]} before, {result['after']:.3f} after; {change}")
        return result

    def _trained(self, name: str, clips: dict[str, list[Clip]]) -> dict[str, Any]:
        """Trains a stage or the decoder for its share of the time left."""
        work, names, lowest = self.work, self.names, [float("inf")]
        planned: dict[str, float] = work.state.setdefault("planned", {})
        if name not in planned:
            ending = 1.5 * work.took("before") + 2 * work.took("parts") + 5
            left = 60 * self.options.minutes - work.seconds - ending
            weights = [SHARES[other] for other in names[names.index(name) :]]
            planned[name] = left * weights[0] / sum(weights) / 60
            if planned[name] < 0.1 and not self.options.steps:
                self.reporter.say(f"{name}: hardly any time is left to train it; give more --minutes")
            work.save()

        def tell(share: float, best: float, before: float) -> None:
            work.tick()
            self.progress = (names.index(name) + share) / len(names)
            if best < lowest[0]:
                if lowest[0] < float("inf") and not self.reporter.console.terminal:
                    self.reporter.say(f"{name}: {best:.3f} {UNITS[name]}, before {before:.3f}")
                lowest[0] = best
            self.reporter.doing(f"{name}, {best:.3f} {UNITS[name]}, before {before:.3f}")

        threads = torch.get_num_threads()
        plan = fitting.Plan(planned[name], self.options.steps, threads, self.device, self.options.seed)
        if name == "decoder":
            sampled = self.config.sampled_quantizers
            return dataclasses.asdict(decoder.adapt(work.folder, clips, sampled, plan, tell))
        return dataclasses.asdict(stages.adapt(work.folder, cast("StageName", name), plan, tell))

    def _prompts(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Prompts: the beginnings of the longest validation stretches."""
        rate = self.config.tokens.sample_rate
        audio = recordings.corpus(self.work.folder / "audio", list(clips))
        longest = sorted(clips, key=lambda clip: -clip.samples)[:SAMPLES]
        return [audio.samples(clip)[: round(self.config.prompt_seconds * rate)] for clip in longest]

    def _sampled(self, folder: Path, prompts: Sequence[np.ndarray], when: str) -> None:
        """Continues prompts with the bundle in a folder, into samples/."""
        model = api.load(str(folder), device=self.device, offline=True)
        target = self.work.folder / "samples"
        target.mkdir(exist_ok=True)
        for number, prompt in enumerate(prompts, 1):
            self._told(f"samples {when}")(number / len(prompts))
            result = model.continue_(prompt, model.sample_rate, duration=SAMPLE_SECONDS, seed=number)
            result.save(target / f"sample{number}.{when}.ogg", force=True)

    def _assembled(self, made: Path, name: str, report: Mapping[str, Any], identity: str) -> None:
        """Assembles the bundle, without its card."""
        parts, adapted = self.work.folder / "parts", self.work.folder / "adapted"
        trained_parts = {"codec" if name == "decoder" else name for name in self.names}
        for file in parts.glob("*.safetensors"):
            if file.stem not in trained_parts:
                shutil.copy(file, adapted)
        detector = adapted / "detector.safetensors"
        if detector.is_file():  # trained on outputs of the source bundle
            about = read_about(detector)
            about["trained"] = {"reused_from": self.config.name, "before": about["trained"]}
            write_tensors(detector, load_file(detector), {"about": json.dumps(about)})
        before = to_json(self.config)
        trained = {"adapted": {"from": self.config.name, "identity": identity, **report}}
        if "recipe" in self.config.trained:
            trained["recipe"] = self.config.trained["recipe"]
        shutil.rmtree(made, ignore_errors=True)
        given = {field: before[field] for field in SETTINGS}
        assemble(adapted, name, made, given, trained=trained, most=float("inf"))

    def _carded(
        self, made: Path, name: str, report: Mapping[str, Any], results: Mapping[str, Any], identity: str
    ) -> None:
        """Adds model card, licence, samples, training curve and SHA256SUMS."""
        samples = sorted((self.work.folder / "samples").glob("*.ogg"))
        for file in samples:
            shutil.copy(file, made)
        if (self.source / "LICENSE").is_file():
            shutil.copy(self.source / "LICENSE", made)
        curve = importlib.util.find_spec("matplotlib") is not None
        if curve:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # before it looks for a folder to cache fonts in
            curve = bool(curves.draw(self.work.folder, made / "training.png"))
        pairs = [(f.name, f.name.replace("before", "after")) for f in samples if f.name.endswith("before.ogg")]
        licence = catalogue.front_matter(self.source).get("license", "other")
        source = SourceBundle(self.config.name, identity, licence, self.config.detector is not None)
        (made / "README.md").write_text(card(name, source, report, results, pairs, curve), encoding="utf-8")
        write_sums(made)
        check_sums(made)
        check_parts(made)


def own_name(name: str, source: str) -> str:
    """The name, or where its watermark would be that of an embedded bundle or of the source, the same with a number."""
    taken = {watermark.bundle_id(other) for other in (source, *catalogue.embedded())}
    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(other for other in names if watermark.bundle_id(other) not in taken)


def _stamp(source: recordings.Source) -> list[Any]:
    """Identifies a recording's file, so that a resumed run notices another one."""
    try:
        status = os.stat(source.path)
    except OSError:  # reported when it is read
        return [source.path, source.speaker]
    return [os.path.realpath(source.path), source.speaker, status.st_size, status.st_mtime_ns]
