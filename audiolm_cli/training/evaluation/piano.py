"""Sections of `evaluate` for the piano: continuations, the noise behind single notes, resyntheses.

Each is a function from a Setting to tables by title.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from audiolm_cli import pipeline
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.config import Sampling
from audiolm_cli.errors import UsageError
from audiolm_cli.request import ContinueRequest
from audiolm_cli.training import RATE
from audiolm_cli.training.evaluation import music
from audiolm_cli.training.evaluation.setting import (
    BATCH,
    SEED,
    Setting,
    resynthesised,
    say,
    training_tokens,
    usual_answers,
)
from audiolm_cli.training.evaluation.tables import Table
from audiolm_cli.training.measures import phones
from audiolm_cli.training.measures.measures import Figure, autoencoder, figure
from audiolm_cli.training.measures.memorised import TrainingIndex


def music_tables(setting: Setting, new: int | None = None) -> dict[str, Table]:
    """Continuations of real piano music by `new` samples (`music.NEW` by default), beside trivial baselines and what
    the acoustic stages make alone: a table of their notes and one of their sound."""
    new = new or music.NEW
    bundle, chosen = setting.bundle, music.cases(setting.validation, setting.prompts, SEED, new)
    if not chosen:
        say(f"no piece is long enough for continuations of {new / RATE:g} s")
        return {}
    answers, sampling = usual_answers(setting, chosen), next(iter(setting.samplings.values()))
    if bundle.coarse.unconditional and new <= music.NEW:  # they fit into one window
        answers["acoustic stages alone"] = functools.partial(without_semantics, bundle, chosen, sampling, new / RATE)
    answers["another piece"] = lambda: [case.real for case in other_pieces(chosen)]
    lengths = f"{music.PROMPT / RATE:g} s + {new / RATE:g} s"
    title = f"{len(chosen)} continuations, {lengths}, of {len({case.piece for case in chosen})} pieces"
    return compared(setting, title, chosen, answers, [case.prompt for case in chosen])


def compared(
    setting: Setting,
    title: str,
    chosen: Sequence[music.PianoCase],
    answers: dict[str, Callable[[], Sequence[np.ndarray]]],
    known: Sequence[np.ndarray] | None = None,
) -> dict[str, Table]:
    """A table of the notes of the answers and one of their sound, each answer compared with the `known` sound that it
    follows, and with the real stretches of `chosen`; without a known one, with these alone."""
    tokenize, memory = phones.as_function(setting.bundle.tokenizer), TrainingIndex.of(training_tokens(setting))
    reals = [music.hear(case.real) for case in chosen]
    before = reals if known is None else [music.hear(sound) for sound in known]
    others = [[real for real, other in zip(reals, chosen, strict=True) if other.piece != case.piece] for case in chosen]
    rows: dict[str, dict[str, Figure]] = {}
    for name, make in answers.items():
        say(f"music: {name}")
        scores = [
            music.score(prompt, real, rest, made, tokenize(made), memory)
            for prompt, real, rest, made in zip(before, reals, others, make(), strict=True)
        ]
        rows[name] = music.summarise([case.piece for case in chosen], scores)
    split = music.PianoScores._fields.index("noise")
    return {
        f"{title}: {what}": {row: {column: scores[column] for column in columns} for row, scores in rows.items()}
        for what, columns in (
            ("notes", music.PianoScores._fields[:split]),
            ("sound", music.PianoScores._fields[split:]),
        )
    }


def long_tables(setting: Setting) -> dict[str, Table]:
    """The same of long continuations."""
    return music_tables(setting, music.LONG)


def note_tables(setting: Setting) -> dict[str, Table]:
    """The noise behind single notes, as played, through the codec and continued; none if FluidSynth is missing."""
    try:
        chosen = music.single_notes(-(-setting.prompts // 4), seed=SEED)
    except UsageError as error:
        say(str(error))
        return {}
    rows: Table = {}
    for name, make in usual_answers(dataclasses.replace(setting, made={}), chosen).items():
        say(f"single notes: {name}")
        heard = [(case.piece, music.hear(made)) for case, made in zip(chosen, make(), strict=True)]
        rows[name] = {
            "noise": figure((piece, found.noise) for piece, found in heard),
            "flatness": figure(((piece, found.flatness) for piece, found in heard), np.median),
        }
    return {f"{len(chosen)} continuations of single notes, {music.NEW / RATE:g} s": rows}


def resynthesis_tables(setting: Setting) -> dict[str, Table]:
    """Real stretches of music played again, in the sound of another piece's prompt and in a sampled one, compared with
    the stretches themselves."""
    bundle, chosen = setting.bundle, music.cases(setting.validation, setting.prompts // 2, SEED)
    if not chosen:
        say("no piece is long enough for resyntheses")
        return {}
    sources, others = [case.real for case in chosen], other_pieces(chosen)
    through = autoencoder(bundle.codec, bundle.config.tokens.quantizers)
    answers: dict[str, Callable[[], Sequence[np.ndarray]]] = {}
    for name, sampling in setting.samplings.items():
        for row, speakers in (
            (name, [case.prompt for case in others]),
            (f"{name}, sampled piano", [None] * len(others)),
        ):
            answers[row] = functools.partial(played_again, bundle, sampling, sources, speakers)
    answers["source, through the codec"] = lambda: [through(source) for source in sources]
    answers["another piece"] = lambda: [case.real for case in others]
    title = f"{len(chosen)} resyntheses of {music.NEW / RATE:g} s, in another piece's sound"
    return compared(setting, title, chosen, answers)


def played_again(
    bundle: Bundle, sampling: Sampling, sources: Sequence[np.ndarray], speakers: Sequence[np.ndarray | None]
) -> list[np.ndarray]:
    """Resynthesises each source in the sound of its speaker, a recording, or in a sampled one."""
    return [
        resynthesised(bundle, [pipeline.Prompt(source, number)], sampling, speaker)[0]
        for number, (source, speaker) in enumerate(zip(sources, speakers, strict=True))
    ]


def other_pieces(chosen: Sequence[music.PianoCase]) -> list[music.PianoCase]:
    """For each case one of another piece: pieces take turns, so half of the cases further on is far enough."""
    return [chosen[n - len(chosen) // 2] for n in range(len(chosen))]


def without_semantics(
    bundle: Bundle, chosen: Sequence[music.PianoCase], sampling: Sampling, seconds: float
) -> list[np.ndarray]:
    """Continues the prompts by stages 2 and 3 without semantic tokens for the continuation."""
    spec, made = bundle.config.tokens, []
    nothing = torch.full((round(seconds * spec.semantic_rate),), spec.semantic_vocabulary)
    for start in range(0, len(chosen), BATCH):
        cases = chosen[start : start + BATCH]
        prompts = [pipeline.Prompt(case.prompt, start + n) for n, case in enumerate(cases)]
        run = pipeline.Run(bundle, ContinueRequest.with_sampling(sampling, seed=SEED), prompts, BATCH)
        known = run.encode([prompt.waveform for prompt in prompts])
        semantic = [torch.cat([torch.full_like(k.semantic, spec.semantic_vocabulary), nothing]) for k in known]
        sounds = run.acoustic(semantic, [k.codes for k in known])
        made += [sound[len(case.prompt) :] for sound, case in zip(sounds, cases, strict=True)]
    return made
