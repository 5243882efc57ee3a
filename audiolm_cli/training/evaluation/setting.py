"""The setting of an evaluation, and the outputs that its sections score."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from audiolm_cli import pipeline
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.config import Sampling
from audiolm_cli.errors import UsageError
from audiolm_cli.request import ContinueRequest, ResynthRequest
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus, half
from audiolm_cli.training.corpora.tokenize import TokenData
from audiolm_cli.training.evaluation import continuations, language_models, music
from audiolm_cli.training.measures.measures import SpokenClip, autoencoder

SEED = 0
BATCH = 10  # continuations sampled together

Case = continuations.SpeechCase | music.PianoCase


@dataclass(frozen=True)
class Setting:
    """What is evaluated, and on how much data."""

    bundle: Bundle
    training: Corpus
    validation: Corpus
    cache: Path
    quick: bool
    prompts: int
    samplings: dict[str, Sampling]  # of continuations, by the name of their row
    best_of: Sequence[int] = ()  # numbers of candidates, a row each beside that without candidates
    half: str = "both"  # of the speakers for prompts and sources; or one of `data.HALVES`
    text: Path | None = None  # folder of books, some of them held out from synthetic speech
    synthetic: Path | None = None  # folder of the synthetic speech that stage 1 was trained on
    made: dict[str, list[np.ndarray]] = field(default_factory=dict)  # continuations that several sections score

    def cases(self, count: int) -> tuple[list[continuations.SpeechCase], continuations.Voices]:
        """The first `count` cases of the half's LibriSpeech speakers, and the voices of all LibriSpeech speakers, to
        identify theirs among."""
        found, voices = self._cases
        return found[:count], voices

    @functools.cached_property
    def _cases(self) -> tuple[list[continuations.SpeechCase], continuations.Voices]:
        clips = of_corpus(self.validation, "librispeech")
        voices = continuations.reference_voices(clips)
        if self.half != "both":
            speakers = half(self.validation, self.half)
            clips = [clip for clip in clips if clip.speaker in speakers]
        return continuations.cases(clips, len(clips) * 2, SEED), voices

    @property
    def piano(self) -> bool:
        """Whether the bundle is evaluated as music."""
        return self.bundle.config.domain == "piano"

    @property
    def whose(self) -> str:
        """The speakers, for titles."""
        return "all speakers" if self.half == "both" else f"the {self.half} half"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def of_corpus(corpus: Corpus, name: str) -> list[SpokenClip]:
    """The clips of one corpus, such as `librispeech`; all clips if the manifest does not distinguish corpora."""
    named = [clip for clip in corpus.clips if clip.corpus == name] or ([] if name == "commonvoice" else corpus.clips)
    return [SpokenClip(clip.speaker, corpus.samples(clip)) for clip in named]


def training_tokens(setting: Setting) -> TokenData:
    """The training recordings as tokens of the bundle; two hours of them for quick figures."""
    say("tokens of the training recordings")
    hours = 2.0 if setting.quick else None
    return language_models.bundle_tokens(setting.bundle, setting.training, "train", setting.cache, hours)


def synthetic_tokens(setting: Setting, split: str) -> list[TokenData]:
    """The synthetic speech as tokens of the bundle, if stage 1 was trained on any."""
    found = language_models.synthetic_tokens(setting.bundle, setting.cache.parent, split)
    if not found:
        say(f"no synthetic speech, as tokens of this bundle, in {setting.cache.parent / 'tokens'}: real speech alone")
    return found


def usual_answers(setting: Setting, chosen: Sequence[Case]) -> dict[str, Callable[[], Sequence[np.ndarray]]]:
    """The answers to compare: the bundle's continuations with each sampling, and baselines without a model."""
    bundle, through = setting.bundle, autoencoder(setting.bundle.codec, setting.bundle.config.tokens.quantizers)
    seconds = len(chosen[0].real) / RATE

    def kept(name: str, sampling: Sampling, candidates: int) -> list[np.ndarray]:
        if (key := f"{name}, {seconds:g} s") not in setting.made:
            setting.made[key] = generated(bundle, chosen, sampling, seconds, best_of=candidates)
        return setting.made[key]

    made: dict[str, Callable[[], Sequence[np.ndarray]]] = {}
    for name, sampling in setting.samplings.items():
        for candidates in (1, *setting.best_of):
            row = f"{name}, best of {candidates}" if candidates > 1 else name
            made[row] = functools.partial(kept, row, sampling, candidates)
    return made | {
        "prompt looped": lambda: [np.resize(case.prompt, len(case.real)) for case in chosen],
        "real continuation": lambda: [case.real for case in chosen],
        "real, through the codec": lambda: [
            through(np.concatenate([case.prompt, case.real]))[len(case.prompt) :] for case in chosen
        ],
    }


def generated(
    bundle: Bundle,
    chosen: Sequence[Case],
    sampling: Sampling,
    seconds: float,
    best_of: int = 1,
    resampled_tokens: int | None = None,
) -> list[np.ndarray]:
    """The bundle's continuations: the new samples for each prompt."""
    request = ContinueRequest.with_sampling(
        sampling, duration=seconds, prompt_seconds=len(chosen[0].prompt) / RATE, best_of=best_of, seed=SEED
    )
    prompts = [pipeline.Prompt(case.prompt, position) for position, case in enumerate(chosen)]
    made = pipeline.continue_(bundle, request, prompts, batch_size=BATCH, resampled_tokens=resampled_tokens)
    return [continuation.waveform[continuation.prompt_samples :] for continuation in made]


def resynthesised(
    bundle: Bundle, prompts: Sequence[pipeline.Prompt], sampling: Sampling, speaker: np.ndarray | None
) -> list[np.ndarray]:
    """The bundle's resyntheses of the prompts in the voice of the recording `speaker`, or in a sampled one."""
    request = ResynthRequest.with_sampling(sampling, seed=SEED)
    made = pipeline.resynth(bundle, request, prompts, speaker=speaker, batch_size=BATCH)
    return [output.waveform for output in made]


def samplings(bundle: Bundle, given: Sequence[str]) -> dict[str, Sampling]:
    """The bundle's own settings as `AudioLM`, or those given as JSON instead, each named by its text, with the bundle's
    for what it omits. Raises UsageError."""
    own = bundle.config.sampling
    try:
        return {text: replace(own, **json.loads(text)) for text in given} or {"AudioLM": own}
    except (TypeError, ValueError) as error:
        raise UsageError(f"--sampling: {error}") from error
