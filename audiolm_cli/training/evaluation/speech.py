"""Sections of `evaluate` for speech: continuations, the words and pauses in them, resyntheses.

Each is a function from a Setting to tables by title.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from audiolm_cli import pipeline
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.config import Sampling
from audiolm_cli.request import ContinueRequest
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import read_manifest
from audiolm_cli.training.corpora.tokenize import TokenData
from audiolm_cli.training.evaluation import continuations, language_models, resyntheses
from audiolm_cli.training.evaluation.setting import (
    BATCH,
    SEED,
    Setting,
    generated,
    resynthesised,
    say,
    synthetic_tokens,
    training_tokens,
    usual_answers,
)
from audiolm_cli.training.evaluation.tables import Table
from audiolm_cli.training.measures import pauses, phones, pitch, recogniser, two_samples
from audiolm_cli.training.measures.measures import Figure, autoencoder, figure
from audiolm_cli.training.measures.memorised import TrainingIndex
from audiolm_cli.training.measures.recogniser import RecognisedWords
from audiolm_cli.training.measures.trigrams import Trigrams, perplexity, unheard

LONG = 60.0  # seconds of a long continuation
ACROSS = 3.0  # seconds after a join in which its words are recognised


def continuation_tables(setting: Setting) -> dict[str, Table]:
    """Continuations of real prompts by 7 s, beside the trivial baselines."""
    chosen, voices = setting.cases(setting.prompts)
    tokenize = phones.as_function(setting.bundle.tokenizer)
    prompts = [tokenize(case.prompt) for case in chosen]
    memory = TrainingIndex.of(training_tokens(setting), *synthetic_tokens(setting, "train"))
    answers = usual_answers(setting, chosen)
    answers["training clip pasted"] = lambda: continuations.pasted(chosen, setting.training, SEED)
    rows: Table = {}
    for name, make in answers.items():
        say(f"continuations: {name}")
        scores = [
            continuations.score(case, new, voices, tokenize, tokens, memory)
            for case, new, tokens in zip(chosen, make(), prompts, strict=True)
        ]
        rows[name] = dict(continuations.summarise([case.speaker for case in chosen], scores))
    count, people = len(chosen), len({case.speaker for case in chosen})
    lengths = f"{continuations.PROMPT / continuations.RATE:g} s + {continuations.NEW / continuations.RATE:g} s"
    speakers = f"{people} speakers among {len(voices.speakers)}; {setting.whose}"
    return {f"{count} continuations, {lengths}, of {speakers}": rows}


def spoken_tables(setting: Setting) -> dict[str, Table]:
    """The words in continuations that two recognisers agree on, and conditions for them to count; and the perplexity of
    the words, by held-out books."""
    chosen, _ = setting.cases(setting.prompts)
    hearing = [recogniser.recogniser(name, setting.cache) for name in recogniser.NAMES]
    answers = usual_answers(setting, chosen)
    answers["training clip pasted"] = lambda: continuations.pasted(chosen, setting.training, SEED)
    answers["real tokens, through stages 2 and 3"] = lambda: with_real_tokens(setting, chosen)
    read, english = texts_read(setting), None
    if setting.text:
        english = Trigrams(unheard(setting.text, [clip.text for clip in setting.validation.clips]))
    rows: Table = {}
    for name, make in answers.items():
        say(f"words of continuations: {name}")
        made = list(make())
        heard = [[hear(new) for hear in hearing] for new in made]
        people = [case.speaker for case in chosen]
        alike = [recogniser.heard_alike(tiny.words, base.words) for tiny, base in heard]
        sure = [base.log_probability for _, base in heard]
        said = recogniser.speech(made, [base for _, base in heard], read)
        rows[name] = {
            "words heard alike": figure(zip(people, alike, strict=True)),
            "log probability": figure(zip(people, sure, strict=True)),
            **{key.replace("_", " "): value for key, value in said._asdict().items()},
        }
        if english:
            words = [base.words for _, base in heard]
            rows[name]["perplexity"] = perplexity(english, zip(people, words, strict=True))
    names = " and ".join(recogniser.NAMES)
    return {f"words of {len(chosen)} continuations, by Whisper {names}; {setting.whose}": rows}


def texts_read(setting: Setting) -> list[str]:
    """The texts of the training data: transcripts of the recordings and of synthetic speech, if there is any."""
    rows = read_manifest(setting.synthetic, "train") if setting.synthetic else []
    return [*(clip.text for clip in setting.training.clips), *(row["text"] for row in rows)]


def with_real_tokens(setting: Setting, chosen: Sequence[continuations.SpeechCase]) -> list[np.ndarray]:
    """Stages 2 and 3 given the real continuation's semantic tokens: the upper bound for stage 1."""
    bundle, made = setting.bundle, []
    sampling = next(iter(setting.samplings.values()))
    for start in range(0, len(chosen), BATCH):
        cases = chosen[start : start + BATCH]
        prompts = [pipeline.Prompt(case.prompt, start + n) for n, case in enumerate(cases)]
        run = pipeline.Run(bundle, ContinueRequest.with_sampling(sampling, seed=SEED), prompts, BATCH)
        semantic = [bundle.tokenize(case.recording)[0] for case in cases]
        sounds = run.acoustic(semantic, [known.codes for known in run.encode([p.waveform for p in prompts])])
        made += [sound[len(case.prompt) :] for sound, case in zip(sounds, cases, strict=True)]
    return made


def join_tables(setting: Setting) -> dict[str, Table]:
    """The first words after a prompt's end, whose last tokens were made without the audio that follows: stage 1 samples
    as many of them again as the bundle's default, or keeps them all."""
    chosen, _ = setting.cases(setting.prompts)
    bundle, people = setting.bundle, [case.speaker for case in chosen]
    join, through = len(chosen[0].prompt) / RATE, autoencoder(bundle.codec, bundle.config.tokens.quantizers)
    recorded = [case.recording[: round((join + ACROSS) * RATE)] for case in chosen]

    def continued(sampling: Sampling, again: int | None) -> list[np.ndarray]:
        new = generated(bundle, chosen, sampling, ACROSS, resampled_tokens=again)
        return [np.concatenate([case.prompt, samples]) for case, samples in zip(chosen, new, strict=True)]

    answers: dict[str, Callable[[], list[np.ndarray]]] = {}
    for name, sampling in setting.samplings.items():
        answers[name] = functools.partial(continued, sampling, None)
        answers[f"{name}, last tokens kept"] = functools.partial(continued, sampling, 0)
    answers["recording"] = lambda: recorded
    answers["recording, through the codec"] = lambda: [through(samples) for samples in recorded]
    hearing = {name: recogniser.recogniser(name, setting.cache, timed=True) for name in recogniser.NAMES}
    real = {name: [hear(samples) for samples in recorded] for name, hear in hearing.items()}
    rows: Table = {}
    for answer, make in answers.items():
        say(f"words across the join: {answer}")
        made = make()
        heard = {name: [hear(samples) for samples in made] for name, hear in hearing.items()}
        rows[answer] = across_joins(people, heard, real, join)
    cut = {name: sum(recogniser.at_join(h, join) is not None for h in found) for name, found in real.items()}
    counts = " and ".join(f"{count} by {name}" for name, count in cut.items())
    return {f"words across {len(chosen)} joins, of which {counts} cut one; {setting.whose}": rows}


def across_joins(
    people: Sequence[str], heard: dict[str, list[RecognisedWords]], real: dict[str, list[RecognisedWords]], join: float
) -> dict[str, Figure]:
    """A row of figures: the first two words after each join (s) that two recognisers agree on, and by each of them,
    whether a word that the join cuts in the real recording is said. Timed words by recogniser, one for each speaker."""
    firsts = [[recogniser.across_join(h, join) for h in pair] for pair in zip(*heard.values(), strict=True)]
    row = {
        "first words heard alike": figure(
            (who, recogniser.heard_alike(*f)) for who, f in zip(people, firsts, strict=True)
        )
    }
    for name, found in heard.items():
        kept = [recogniser.kept_at_join(a, b, join) for a, b in zip(real[name], found, strict=True)]
        row[f"cut word said, {name}"] = figure(zip(people, kept, strict=True))
    return row


def pause_tables(setting: Setting) -> dict[str, Table]:
    """The sound between the words of continuations, beside that of the real ones."""
    chosen, _ = setting.cases(setting.prompts)
    answers = usual_answers(setting, chosen)
    del answers["prompt looped"]
    people, real = [case.speaker for case in chosen], [pauses.between_words(case.real).level for case in chosen]
    rows: Table = {}
    for name, make in answers.items():
        found = [pauses.between_words(new) for new in make()]
        rows[name] = {
            "correlation at 20 ms": figure((who, p.correlation) for who, p in zip(people, found, strict=True)),
            "of noise": figure((who, p.of_noise) for who, p in zip(people, found, strict=True)),
            "level, dB": figure((who, p.level) for who, p in zip(people, found, strict=True)),
            "above real": figure((who, p.level - r) for who, p, r in zip(people, found, real, strict=True)),
        }
    return {f"between the words of {len(chosen)} continuations; {setting.whose}": rows}


def long_tables(setting: Setting) -> dict[str, Table]:
    """The last 7 s of continuations of a minute: whether the voice holds, and whether speech goes on."""
    chosen, voices = setting.cases(-(-setting.prompts // 3))
    tokenize = phones.as_function(setting.bundle.tokenizer)
    rows: Table = {}
    for name, sampling in setting.samplings.items():
        made = generated(setting.bundle, chosen, sampling, LONG)
        scores = [
            continuations.score(case, new[-continuations.NEW :], voices, tokenize, tokenize(case.prompt))
            for case, new in zip(chosen, made, strict=True)
        ]
        rows[name] = dict(continuations.summarise([case.speaker for case in chosen], scores))
    among = f"among {len(voices.speakers)} speakers; {setting.whose}"
    return {f"{len(chosen)} continuations of {LONG:g} s, their last 7 s, {among}": rows}


def resynthesis_tables(setting: Setting) -> dict[str, Table]:
    """Recordings resynthesised in another's voice: whose voice it is, and how well content and melody are preserved."""
    bundle = setting.bundle
    cases, voices = setting.cases(setting.prompts)
    groups = resyntheses.pairings(cases, setting.prompts // 2)
    tokenize = phones.as_function(bundle.tokenizer)
    through = autoencoder(bundle.codec, bundle.config.tokens.quantizers)
    answers: dict[str, Callable[[list[resyntheses.Pairing], int], Sequence[np.ndarray]]] = {}
    for name, sampling in setting.samplings.items():
        answers[name] = functools.partial(said_again, bundle, sampling)
        answers[f"{name}, after 10 s"] = functools.partial(said_again, bundle, sampling, whole=True)
    answers |= {
        "source": lambda group, number: [pairing.source.real for pairing in group],
        "source, through the codec": lambda group, number: [through(pairing.source.real) for pairing in group],
    }
    rows: dict[str, list[resyntheses.ResynthesisScores]] = {}
    hearing = {name: recogniser.recogniser(name, setting.cache) for name in recogniser.NAMES}
    words: dict[str, list[dict[str, float]]] = {}
    for number, group in enumerate(groups):
        say(f"resynthesis: {number + 1} of {len(groups)}")
        sources = [pairing.source.real for pairing in group]
        wanted = [(tokenize(source), pitch.contour(source)) for source in sources]
        said = [{n: hear(source).words for n, hear in hearing.items()} for source in sources]
        for name, make in answers.items():
            for pairing, made, source, spoken in zip(group, make(group, number), wanted, said, strict=True):
                tokens, melody = source
                score = resyntheses.score(pairing, made, voices, tokens, tokenize(made), melody)
                rows.setdefault(name, []).append(score)
                wrong = {n: recogniser.word_error(spoken[n], hear(made).words) for n, hear in hearing.items()}
                words.setdefault(name, []).append(wrong)
    voiced = [group[0].reference.speaker for group in groups for _ in group]
    table: Table = {name: dict(continuations.summarise(voiced, scores)) for name, scores in rows.items()}
    table["recordings, beside their transcripts"] = {}
    for n, hear in hearing.items():
        for name, errors in words.items():
            table[name][f"word error, {n}"] = figure((v, e[n]) for v, e in zip(voiced, errors, strict=True))
        own = recogniser.own_error(setting.validation, hear)
        table["recordings, beside their transcripts"][f"word error, {n}"] = own
    what = f"{sum(map(len, groups))} resyntheses of 7 s after 3 s of another speaker"
    return {f"{what}, among {len(voices.speakers)}; {setting.whose}": table}


def said_again(
    bundle: Bundle, sampling: Sampling, group: list[resyntheses.Pairing], number: int, whole: bool = False
) -> list[np.ndarray]:
    """Resynthesises the sources of a group in the voice of its reference: its prompt, or all of its recording."""
    sources = [pipeline.Prompt(pairing.source.real, number, n) for n, pairing in enumerate(group)]
    reference = group[0].reference
    return resynthesised(bundle, sources, sampling, reference.recording if whole else reference.prompt)


def synthetic_tables(setting: Setting) -> dict[str, Table]:
    """Whether stage 1 sees real and synthetic speech as the same: bits of both, and a classifier's accuracy; no
    table without synthetic speech."""
    bundle, crops = setting.bundle, 32 if setting.quick else 96
    synthetic: dict[str, list[TokenData]] = {}
    for split, name in (("train", "synthetic, as heard"), ("valid", "synthetic, not heard, unchanged")):
        if not (found := synthetic_tokens(setting, split)):
            return {}
        synthetic[name] = found
    real = language_models.bundle_tokens(bundle, setting.validation, "valid", setting.cache)
    known = two_samples.stretches([training_tokens(setting), real])
    rows: Table = {"real, not heard": {"bits": language_models.semantic_bits(bundle, [real], crops)}}
    for name, data in synthetic.items():
        say(f"real and synthetic tokens: {name}")
        others = two_samples.stretches(data, by_track=True)
        rows[name] = {
            "bits": language_models.semantic_bits(bundle, data, crops, by_track=True),
            "told from real": two_samples.told_apart(known, others, bundle.config.tokens.semantic_vocabulary),
        }
    return {"semantic tokens of real and synthetic speech: bits in stage 1, and a classifier's accuracy": rows}
