"""Evaluates `audiolm train`: the same resyntheses by a bundle before and after fine-tuning, voice by voice.

    python -m audiolm_cli.training.evaluation.adapted --data DATA [--minutes 20] [--amounts 1 5 10] [--voice FOLDER]

The voices are the validation speakers with the most recordings, and one for each --voice FOLDER, on which no part was
trained. The last recordings of a voice are held out; up to --amounts minutes of the others are trained on. Then both
bundles resynthesise sources of other validation speakers with a held-out recording as the reference. The figures are:
whether the reference's voice is the nearest of all (`resyntheses`), DNSMOS, and whether the reused classifier detects
the outputs. The same with references of other speakers shows what fine-tuning costs them. Bundles already in --runs
are measured, not trained again. Intervals are 95 % by bootstrap over voices; for one voice, over the speakers of its
sources. Needs the extra `eval`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiolm_cli import detector
from audiolm_cli.audio import files
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.console import Console
from audiolm_cli.errors import AudioLMError, InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.adapting import adapt, recordings
from audiolm_cli.training.corpora.data import load_corpus
from audiolm_cli.training.evaluation import continuations, resyntheses
from audiolm_cli.training.evaluation.continuations import SpeechCase, Voices
from audiolm_cli.training.evaluation.resyntheses import Pairing
from audiolm_cli.training.evaluation.setting import of_corpus, say
from audiolm_cli.training.evaluation.speech import said_again
from audiolm_cli.training.evaluation.tables import Table, plain, show
from audiolm_cli.training.measures import phones, pitch
from audiolm_cli.training.measures.measures import SpokenClip, voice

KEPT_APART = 40.0  # s at the end of a voice's recordings: a prompt, and reference audio to identify the speaker by
LEAST = 30.0  # s to train on


class AdaptedScores(NamedTuple):
    """Scores of one resynthesis: some of `ResynthesisScores`, and whether the classifier calls it generated."""

    speaker_is_reference: float
    dnsmos: float
    token_error: float
    generated: float


@dataclasses.dataclass(frozen=True)
class Voice:
    """Recordings to train on, float32 `[T]` each, and a case from the held-out ones."""

    name: str
    recordings: list[np.ndarray]
    case: SpeechCase


def kept_apart(name: str, clips: Sequence[np.ndarray]) -> Voice:
    """The voice of recordings, given in order. Raises InputError if they are too short."""
    apart, place = 0, len(clips)
    while place and apart < KEPT_APART * RATE:
        place -= 1
        apart += len(clips[place])
    tested = np.concatenate(clips[place:]) if clips else np.zeros(0)
    if apart < KEPT_APART * RATE or sum(map(len, clips[:place])) < LEAST * RATE:
        raise InputError(f"{name}: less than {KEPT_APART + LEAST:g} s of recordings")
    prompt, real = tested[: continuations.PROMPT], tested[continuations.PROMPT :][: continuations.NEW]
    reference = voice(tested[continuations.PROMPT + continuations.NEW :][: continuations.REFERENCE_MOST])
    return Voice(name, list(clips[:place]), SpeechCase(name, prompt, real, reference))


def voices(clips: Sequence[SpokenClip], count: int, folders: Sequence[Path]) -> Iterator[Voice]:
    """The voices: speakers with the most recordings, and one for each folder."""
    by_speaker: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip.samples)
    for speaker in sorted(by_speaker, key=lambda who: -sum(map(len, by_speaker[who])))[:count]:
        yield kept_apart(speaker, by_speaker[speaker])
    for folder in folders:
        found = recordings.listed([str(folder)])
        yield kept_apart(folder.name, [files.read(source.path, RATE).samples for source in found])


def trained(own: Voice, minutes: float, options: argparse.Namespace) -> Path:
    """The bundle fine-tuned on so many minutes of a voice; trains it unless it exists."""
    folder = options.runs / own.name
    (folder / "recordings").mkdir(parents=True, exist_ok=True)
    left, chosen = round(minutes * 60 * RATE), []
    for number, samples in enumerate(own.recordings):
        file = folder / "recordings" / f"{number:03}.wav"
        if not file.exists():
            files.write(file, samples, RATE, {})
        if left > 0:
            chosen.append(str(file))
            left -= len(samples)
    out = folder / f"{own.name}-{minutes:g}"
    if not out.exists():
        say(f"{own.name}: training on {min(minutes, sum(map(len, own.recordings)) / RATE / 60):.1f} minutes")
        asked = adapt.Options(
            chosen, str(out), options.model, minutes=options.minutes, threads=options.threads, device=options.device,
            least=LEAST,
        )  # fmt: skip
        adapt.adapt(asked, Console())
    return out


def scores(
    bundle: Bundle, pairings: Sequence[Pairing], known: Voices, tokenize: Callable[[np.ndarray], np.ndarray]
) -> list[AdaptedScores]:
    """Scores of a bundle's resyntheses with one reference."""
    found = []
    for pairing, made in zip(pairings, said_again(bundle, bundle.config.sampling, list(pairings), 0), strict=True):
        wanted, melody = tokenize(pairing.source.real), pitch.contour(pairing.source.real)
        score = resyntheses.score(pairing, made, known, wanted, tokenize(made), melody)
        probability = detector.judge(bundle, made).probability if bundle.detector is not None else None
        called = np.nan if probability is None else float(probability > 0.5)
        found.append(AdaptedScores(score.speaker_is_reference, score.dnsmos, score.token_error, called))
    return found


def tables(options: argparse.Namespace) -> dict[str, Table]:
    """All figures: for each voice, for all voices, and for references of other speakers."""
    clips = of_corpus(load_corpus(options.data, "valid", RATE, options.runs / "audio"), "librispeech")
    chosen = list(voices(clips, options.speakers, options.voice))
    names = {own.name for own in chosen}
    others = continuations.cases([clip for clip in clips if clip.speaker not in names], 2 * options.pairings)
    if len({case.speaker for case in others}) < 2:
        raise InputError(f"{options.data}: too few other speakers to say again")
    rest = continuations.reference_voices([clip for clip in clips if clip.speaker not in names])
    embeddings = np.concatenate([rest.embeddings, [own.case.reference for own in chosen]])
    known = Voices([*rest.speakers, *(own.name for own in chosen)], embeddings)
    load = functools.partial(bundles.load, device=options.device)
    base = load(options.model)
    tokenize = phones.as_function(base.tokenizer)
    sources = others[: options.pairings]
    # in voices of others: each source by the next speaker, once for every bundle
    foreign = [
        Pairing(a, b) for a, b in zip(sources, [*sources[1:], sources[0]], strict=True) if a.speaker != b.speaker
    ]
    all_of: dict[str, list[tuple[str, AdaptedScores]]] = {}
    strange: dict[str, list[tuple[str, AdaptedScores]]] = {}
    found: dict[str, Table] = {}

    def in_voices_of_others(bundle: Bundle, row: str, who: str) -> None:
        for pairing in foreign:
            (score,) = scores(bundle, [pairing], known, tokenize)
            strange.setdefault(row, []).append((who, score))

    in_voices_of_others(base, "before", "")
    for own in chosen:
        bundle_of = {"before": base}
        bundle_of |= {f"{amount:g} minutes": load(str(trained(own, amount, options))) for amount in options.amounts}
        rows: Table = {}
        for row, bundle in bundle_of.items():
            say(f"{own.name}: {row}")
            made = scores(bundle, [Pairing(source, own.case) for source in sources], known, tokenize)
            rows[row] = dict(continuations.summarise([source.speaker for source in sources], made))
            all_of.setdefault(row, []).extend((own.name, score) for score in made)
            if bundle is not base:
                in_voices_of_others(bundle, row, own.name)
        found[f"{len(sources)} resyntheses in the voice of {own.name}"] = rows
    for title, rated in ((f"in the voices of {len(chosen)}", all_of), ("in voices of others", strange)):
        found[f"resyntheses {title}, among {len(known.speakers)}"] = {
            row: dict(continuations.summarise(*zip(*both, strict=True))) for row, both in rated.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates fine-tuning on recordings of a voice.")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--model", default="weights/speech", help="name or folder of the bundle to fine-tune")
    parser.add_argument("--runs", type=Path, default=Path("runs/adapted"), help="folder for caches and bundles")
    parser.add_argument("--speakers", type=int, default=4, help="number of validation speakers to fine-tune on")
    parser.add_argument("--voice", type=Path, nargs="+", default=[], help="folders of recordings of other voices")
    parser.add_argument("--amounts", type=float, nargs="+", default=[10.0], help="minutes of recordings: a row each")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes of each training")
    parser.add_argument("--pairings", type=int, default=20, help="resyntheses in each voice")
    parser.add_argument("--threads", type=int, help="processor threads of a training; all cores but one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    try:
        found = tables(options)
    except AudioLMError as error:
        sys.exit(f"adapted: {error}")
    except ImportError as error:
        sys.exit(f"adapted: {error}; `make eval` installs what is needed")
    for title, table in found.items():
        show(title, table)
    if options.json:
        options.json.write_text(json.dumps({"minutes": options.minutes, "tables": plain(found)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
